"""GLUE tasks as rows, from the official TSV folders or from the Hugging Face hub.

Both sources share one conversion, so they give the same rows in the same order with the same
SHA-256. No row is skipped silently: a row that cannot be read is an error with file and line. Rows
that are broken in the official file itself are counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.errors import DataError, UnavailableError
from smallbench.glue.official import official_differences
from smallbench.glue.tasks import TASKS, Split, Task

HUB = "hub"
"""Value of --glue for `nyu-mll/glue`."""
HUB_DATASET = "nyu-mll/glue"
# Pinned, so that rows, order and hashes of stored results stay valid.
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

SAMPLE_MARKER = "SAMPLE.json"
"""File that marks a folder of generated sample tasks, which are not GLUE (see `samples`)."""

MAX_SKIPPED = 100
"""Limit of broken rows; with more, the file is damaged beyond the official release."""

MAX_FILE_BYTES = 512 << 20
"""Size limit of one file; the largest official one, MNLI's train.tsv, has 79 MB."""

SCORE = re.compile(r"[+-]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")
"""A number as the files spell it; `float` would also read `1_0` and digits of other scripts."""

MAX_SCORE = 5.0  # STS-B's scale, Cer et al. 2017


Labels = NDArray[np.int64 | np.float64]
"""[N] classes in the order of `Task.label_names`, or scores."""


@dataclass(frozen=True, eq=False)
class Examples:
    """The N rows of one split."""

    split: str
    first: tuple[str, ...]
    """N texts: the sentence, or the first of a pair."""
    second: tuple[str, ...] | None
    """N texts, or None for a task with one sentence."""
    labels: Labels | None
    """None for a test split."""
    sha256: str
    """Hash of the rows' content, equal for every source with the same rows."""
    num_skipped: int = 0
    """Rows that are broken in the official file and that every published reader drops."""

    @classmethod
    def of(
        cls,
        split: str,
        first: Sequence[str],
        second: Sequence[str] | None,
        labels: Labels | None,
        num_skipped: int = 0,
    ) -> Examples:
        """Return the rows of these columns, with their hash."""
        pair = None if second is None else tuple(second)
        examples, sha256 = cls(split, tuple(first), pair, labels, "", num_skipped), hashlib.sha256()
        for number, row in enumerate(examples.rows()):
            sha256.update(json.dumps([number, *row]).encode() + b"\n")
        return replace(examples, sha256=sha256.hexdigest())

    def texts(self) -> Iterator[tuple[str, ...]]:
        """Yield the one or two texts of each row."""
        columns = [self.first] if self.second is None else [self.first, self.second]
        yield from zip(*columns, strict=True)

    def rows(self) -> Iterator[tuple[str | int | None, ...]]:
        """Yield the texts and the label of each row, a score with three decimals."""
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        for texts, label in zip(self.texts(), labels, strict=True):
            yield (*texts, f"{label:.3f}" if isinstance(label, float) else label)

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Sequence[int] | NDArray[np.int64], *, split: str) -> Examples:
        """Return the given rows as a split with its own hash."""
        return Examples.of(
            split,
            [self.first[row] for row in rows],
            None if self.second is None else [self.second[row] for row in rows],
            None if self.labels is None else self.labels[np.asarray(rows)],
        )


@dataclass(frozen=True, eq=False)
class TaskData:
    """The splits of one task in a source: `train`, the scored splits, and the unscored ones.

    The scored splits are all dev splits, or `choice` (see `choice`).
    """

    task: Task
    source: str
    splits: Mapping[str, Examples]
    is_sample: bool
    """Whether the rows are generated sample tasks; scores on them are not GLUE scores."""
    unofficial: tuple[str, ...] = ()
    """How the source's rows differ from the official ones (see `official`); empty for samples."""

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that no run is trained on, the ranked one first."""
        return tuple(n for n, e in self.splits.items() if n != "train" and e.labels is not None)

    def first(self, count: int | None) -> TaskData:
        """Return the data with at most the first `count` rows of `train`; None keeps all."""
        train = self.splits["train"]
        if count is None or count >= len(train):
            return self
        return replace(
            self, splits={**self.splits, "train": train.take(range(count), split="train")}
        )

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of the rows of each split."""
        return {name: examples.sha256 for name, examples in self.splits.items()}


_Row = tuple[tuple[str, ...], int | float | None]
"""The texts of a row, and its label unless the split is a test split."""


def load_task(task: Task, source: str | Path) -> TaskData:
    """Read every split of `task` from a folder in the official layout, or from `"hub"`.

    Raises `DataError` for missing, damaged or foreign files, `UnavailableError` if the hub cannot
    be reached.
    """
    if str(source) == HUB:
        return _load_hub(task)
    root = Path(source)
    require_folder(root)
    folder = root / task.directory
    files = ", ".join(split.file for split in task.splits if not split.is_test)
    if not folder.is_dir():
        raise DataError(
            f"{root}/{task.directory}/ does not exist; expected {task.directory}/ with {files} "
            "(the official GLUE layout), or --glue=hub"
        )
    splits = {}
    for split in task.splits:
        path = root / (split.folder or task.directory) / split.file
        if path.is_file():
            splits[split.name] = read_tsv(task, split, path)
        elif os.path.lexists(path):
            raise DataError(f"{path} is not a regular file, or a broken link")
        elif not split.is_test:
            raise DataError(f"{path} is missing; expected {files} in {folder}")
    return _task_data(task, str(root), splits, is_sample=(root / SAMPLE_MARKER).is_file())


def require_folder(root: Path) -> None:
    """Raise `DataError` unless `root` is a folder."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder in the official GLUE layout, or hub")


def _task_data(
    task: Task, source: str, splits: Mapping[str, Examples], *, is_sample: bool
) -> TaskData:
    unofficial = () if is_sample else official_differences(task, splits)
    return TaskData(task, source, splits, is_sample=is_sample, unofficial=unofficial)


# ---- the official TSV layout


def read_tsv(task: Task, split: Split, path: Path) -> Examples:
    """Read one official file: tab-separated, no quoting, columns by the header's names.

    A byte-order mark, CRLF and a missing final newline are accepted. Raises `DataError` naming the
    file, the line and the expected columns for anything else.
    """
    lines = _read_lines(path)
    needed = [*task.tsv_texts] if split.is_test else [*task.tsv_texts, task.tsv_label]
    columns, num_headers = _columns(task, split, lines, needed, path)
    text_positions = [columns.index(name) for name in task.tsv_texts]
    label_position = None if split.is_test else columns.index(task.tsv_label)
    index_position = columns.index("index") if split.is_test and "index" in columns else None
    rows: list[_Row] = []
    num_skipped = 0
    for number, line in enumerate(lines[num_headers:], start=num_headers + 1):
        where = f"{path}, line {number}"
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != len(columns):
            if task.may_have_short_rows and len(fields) < len(columns):
                num_skipped += 1
                if num_skipped > MAX_SKIPPED:
                    raise DataError(
                        f"{where}: more than {MAX_SKIPPED} rows have fewer than {len(columns)} "
                        f"columns ({_listed(columns)}); the official file has a few, so this "
                        "one is damaged"
                    )
                continue
            what = "blank line" if not line.strip() else f"{len(fields)} columns"
            raise DataError(f"{where}: {what}, expected {len(columns)}: {_listed(columns)}")
        if index_position is not None and fields[index_position] != str(len(rows)):
            raise DataError(
                f"{where}: index {_shown(fields[index_position])}, expected {len(rows)}"
            )
        texts = tuple(fields[position] for position in text_positions)
        label = None if label_position is None else _read_label(task, fields[label_position], where)
        _require_text(texts, where, columns)
        rows.append((texts, label))
    return _examples(task, split, rows, source=str(path), num_skipped=num_skipped)


def _read_lines(path: Path) -> list[str]:
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path} has more than {MAX_FILE_BYTES:,} bytes; expected a GLUE file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); expected the "
            "official file, unpacked, in UTF-8"
        ) from None
    # The line ends of the hub's own conversion (Python's universal newlines), and no others:
    # str.splitlines() would also split at U+2028, U+0085 and vertical tabs inside a sentence.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def _columns(
    task: Task, split: Split, lines: Sequence[str], needed: Sequence[str], path: Path
) -> tuple[tuple[str, ...], int]:
    if task.headerless and not split.is_test:
        return task.headerless, 0
    columns = tuple(name.strip() for name in lines[0].split("\t")) if lines else ()
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)} in the header; "
            f"expected at least: {', '.join(needed)}"
        )
    twice = [name for name in needed if columns.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: the header has the column {twice[0]} twice")
    return columns, 1


def _listed(columns: Iterable[str]) -> str:
    return shorten(", ".join(columns), 300, placeholder=" …")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _read_label(task: Task, text: str, where: str) -> int | float:
    if task.file_labels is not None:
        if text in task.file_labels:
            return task.file_labels.index(text)
        raise DataError(
            f"{where}: label {_shown(text)}, expected one of: {', '.join(task.file_labels)}"
        )
    if not SCORE.fullmatch(text):
        raise DataError(f"{where}: score {_shown(text)}, expected a number from 0 to 5")
    return _score(float(text), where)


def _score(value: float, where: str) -> float:
    if not 0.0 <= value <= MAX_SCORE:
        raise DataError(f"{where}: score {value!r}, expected a number from 0 to 5")
    # The files have three decimals; the hub keeps the same scores as 32-bit floats.
    return round(value, 3) + 0.0  # no negative zero


# ---- the Hugging Face hub


def _load_hub(task: Task) -> TaskData:
    try:
        import datasets
    except ImportError:
        raise UnavailableError(
            "--glue=hub needs the package datasets; pip install 'smallbench[train]', or set "
            "--glue to a folder in the official layout"
        ) from None
    configs = {split.hub_config or task.name for split in task.splits}
    try:
        tables = {
            config: datasets.load_dataset(HUB_DATASET, config, revision=HUB_REVISION)
            for config in sorted(configs)
        }
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # `datasets` raises ValueError if it is offline and its cache lacks the data.
        raise UnavailableError(
            f"cannot load {HUB_DATASET} ({task.name}) from the hub: {error}; check the "
            "network, or set --glue to a folder in the official layout"
        ) from None
    splits = {}
    for split in task.splits:
        config = split.hub_config or task.name
        if split.hub not in tables[config]:
            raise DataError(f"{HUB_DATASET} ({config}) has no split {split.hub}")
        table = tables[config][split.hub]
        names = getattr(table.features.get("label"), "names", None)
        splits[split.name] = examples_from_hub(task, split, table, label_names=names)
    return _task_data(task, f"{HUB_DATASET}@{HUB_REVISION}", splits, is_sample=False)


def examples_from_hub(
    task: Task,
    split: Split,
    table: Iterable[Mapping[str, Any]],
    *,
    label_names: Iterable[str] | None,
) -> Examples:
    """Return the rows of a `datasets` table; classes are mapped by name, never by position.

    `label_names` are the table's own, None for a regression. Raises `DataError` for unknown ones.
    """
    names = None if label_names is None else tuple(label_names)
    if (names and sorted(names)) != (task.label_names and sorted(task.label_names)):
        raise DataError(
            f"{HUB_DATASET} ({task.name}) has labels {names}, expected {task.label_names}"
        )
    rows = []
    for number, record in enumerate(table):
        where = f"{HUB_DATASET} ({task.name}), {split.hub}, row {number}"
        label: int | float | None = None
        # Test labels are -1, or public for MRPC; they are never used.
        if not split.is_test:
            value = record.get("label")
            if not isinstance(value, int | float):
                raise DataError(f"{where}: label {value!r}, expected a number")
            if names is None or task.label_names is None:
                label = _score(float(value), where)
            elif isinstance(value, int) and 0 <= value < len(names):
                label = task.label_names.index(names[value])
            else:
                raise DataError(f"{where}: label {value!r}, expected 0 to {len(names) - 1}")
        wrong = [name for name in task.hub_texts if not isinstance(record.get(name), str)]
        if wrong:
            raise DataError(f"{where}: {wrong[0]} is not a string but {record.get(wrong[0])!r}")
        texts = tuple(record[name].strip() for name in task.hub_texts)
        _require_text(texts, where, task.hub_texts)
        rows.append((texts, label))
    return _examples(task, split, rows, source=f"{HUB_DATASET} {split.hub}")


# ---- shared by both sources


def _require_text(texts: tuple[str, ...], where: str, columns: Iterable[str]) -> None:
    # The official files do have a pair with one empty text, but no row without any text.
    if not any(texts):
        raise DataError(f"{where}: no text; expected columns: {_listed(columns)}")


def _examples(
    task: Task, split: Split, rows: Sequence[_Row], *, source: str, num_skipped: int = 0
) -> Examples:
    if not rows:
        raise DataError(f"{source} has no rows")
    first = [texts[0] for texts, _ in rows]
    second = [texts[1] for texts, _ in rows] if len(task.hub_texts) == 2 else None
    labels: Labels | None = None
    if not split.is_test:
        kind = np.float64 if task.is_regression else np.int64
        labels = np.array([label for _, label in rows], dtype=kind)
    return Examples.of(split.name, first, second, labels, num_skipped)


def available_tasks(source: str | Path) -> tuple[str, ...]:
    """Return the names of the tasks in `source`, in the table's order; the hub has all.

    Raises `DataError` if a folder has none.
    """
    if str(source) == HUB:
        return tuple(TASKS)
    require_folder(Path(source))
    names = tuple(name for name, task in TASKS.items() if (Path(source) / task.directory).is_dir())
    if not names:
        folders = ", ".join(f"{task.directory}/" for task in TASKS.values())
        raise DataError(f"{source} has no GLUE task; expected folders among: {folders}")
    return names
