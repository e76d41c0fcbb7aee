"""The file for GLUE's server: eleven files of predictions in a flat zip, checked before writing.

Each task's test predictions come from its best dev run, as usual for GLUE submissions; they are
stored with that run. Only the server has the labels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.errors import DataError
from smallbench.files import atomic_writer, write_text
from smallbench.glue.protocols import summarize
from smallbench.glue.results import (
    HEADER,
    predictions_text,
    read_predictions,
    read_runs,
    run_directory,
)
from smallbench.glue.task_data import MAX_SCORE
from smallbench.glue.tasks import TASKS, Split, Task

MAX_FILE_BYTES = 64 * 2**20  # the largest file, QQP's, has 4 MiB


WNLI, WNLI_MAJORITY = Split("test", "WNLI.tsv", "test", 146, "WNLI.tsv"), "0"
"""WNLI is not trained here, since dev contradicts train. 0, not entailed, has 323 of train's 635
rows."""

_WNLI_TASK = replace(TASKS["rte"], name="wnli", names_in_files=False, splits=(WNLI,))

FILES: Mapping[str, tuple[Task, Split]] = {
    split.submission: (task, split)
    for task in (*TASKS.values(), _WNLI_TASK)
    for split in task.splits
    if split.submission is not None
}
"""All eleven files by name."""


def write_submission(run: Path, out: Path, *, protocol: str) -> str:
    """Write the zip of the runs stored in `run`, and a text about it beside it; return that text.

    Raises `DataError`, and writes nothing, if the server would refuse a file.
    """
    summary = summarize(read_runs(run), protocol)
    if summary.is_sample:
        raise DataError(
            f"{run} has generated samples; run 'smallbench glue' with --glue=hub or "
            "the official files"
        )
    texts = {WNLI.file: predictions_text([WNLI_MAJORITY] * WNLI.num_rows)}
    majority = f"class {WNLI_MAJORITY} everywhere, the majority in train (not trained here)"
    sources = {WNLI.file: majority}
    for name, (task, split) in FILES.items():
        if task.name in summary.tasks:
            directory = run_directory(run, summary.tasks[task.name].best.settings)
            if (directory / f"{split.name}.tsv").is_file():
                predictions = read_predictions(directory, task, split.name)
                texts[name] = submission_text(task, predictions)
                sources[name] = f"{directory}/{split.name}.tsv"
    for name, text in texts.items():
        check_submission_file(name, text, where=sources[name])
    missing = [name for name in FILES if name not in texts]
    report = [f"{out}: {len(texts)} of {len(FILES)} files; {summary.model}, {protocol}", ""]
    report += [f"{name}: {sources[name]}" for name in FILES if name in texts]
    if missing:
        report += [
            "",
            f"Missing: {', '.join(missing)}. The server accepts only all {len(FILES)} files; a "
            "run stores predictions for each test file in its data.",
        ]
    with atomic_writer(out) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in FILES:
            if name in texts:  # a timestamp would make equal content differ
                pack.writestr(zipfile.ZipInfo(name), texts[name], zipfile.ZIP_DEFLATED)
    write_text(out.with_suffix(".txt"), "\n".join(report) + "\n")
    return "\n".join(report)


def check_submission(path: Path) -> str:
    """Check a zip from any source; raise `DataError` if the server would refuse it."""
    try:
        with zipfile.ZipFile(path) as pack:
            entries = pack.infolist()
            names = [entry.filename for entry in entries]
            for name in names:
                if name not in FILES or names.count(name) > 1:
                    raise DataError(
                        f"{path} has {name!r}; expected {', '.join(FILES)}, once each, at the "
                        "top level"
                    )
            missing = [name for name in FILES if name not in names]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)}; the server accepts only "
                    "complete submissions"
                )
            for entry in entries:
                with pack.open(entry) as stream:
                    content = stream.read(MAX_FILE_BYTES + 1)
                if len(content) > MAX_FILE_BYTES:
                    raise DataError(f"{path}, {entry.filename}: over {MAX_FILE_BYTES:,} bytes")
                where = f"{path}, {entry.filename}"
                check_submission_file(entry.filename, content.decode(), where=where)
    except (OSError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError, RuntimeError) as error:
        raise DataError(f"{path} is not a readable zip of text files ({error})") from None
    return f"{path}: all {len(FILES)} files are as the server expects them"


def submission_text(task: Task, predictions: NDArray[Any]) -> str:
    """Return a task's predictions (classes or scores, [N]) as a file of the submission."""
    if task.file_labels is not None:
        return predictions_text([task.file_labels[value] for value in predictions.tolist()])
    clipped = np.clip(predictions, 0.0, MAX_SCORE)  # NaN stays NaN
    return predictions_text([f"{value:.3f}" for value in clipped.tolist()])


def check_submission_file(name: str, text: str, *, where: str) -> None:
    """Raise `DataError` unless `text` is what the server expects of the file `name`."""
    task, split = FILES[name]
    labels = task.file_labels
    lines = text.splitlines()
    if not lines or lines[0] != HEADER:
        raise DataError(f"{where}: the first line must be {HEADER!r}")
    if len(lines) - 1 != split.num_rows:
        raise DataError(
            f"{where}: {len(lines) - 1:,} predictions for {name}, expected {split.num_rows:,}"
        )
    for number, line in enumerate(lines[1:]):
        index, _, value = line.partition("\t")
        if index != str(number) or not _is_allowed(value, labels):
            what = " or ".join(labels) if labels else f"0 to {MAX_SCORE:g}"
            raise DataError(f"{where}, line {number + 2}: {line!r}, expected {number}<TAB>{what}")


def _is_allowed(value: str, labels: tuple[str, ...] | None) -> bool:
    if labels is not None:
        return value in labels
    try:
        return 0.0 <= float(value) <= MAX_SCORE
    except ValueError:
        return False
