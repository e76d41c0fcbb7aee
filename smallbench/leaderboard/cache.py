"""Keep evaluations in a folder, by the hash of all that they depend on.

That is the entry's files, the gold labels and the code of the checks. An index maps each folder to
the hash of its files, so that a folder without changes is not read again: as Git's index does, it
compares names, sizes, times and inodes.

    KEY.json, KEY.npy    an evaluation, and its draws
    folders.json         folder to its stamp and the hash of its files
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np

from smallbench import files
from smallbench.leaderboard.copies import Evidence
from smallbench.leaderboard.entry import entry_from_dict, entry_to_dict
from smallbench.leaderboard.finding import Finding, Rejected
from smallbench.leaderboard.folder import list_files
from smallbench.leaderboard.gold import Gold
from smallbench.leaderboard.scores import TaskScore, View, ViewName
from smallbench.leaderboard.verdict import Evaluation, report_dict

SETTLED_NS = 1_000_000_000
"""A file that changed this recently may change again without another time of change."""
INDEX = "folders.json"


class EvaluationCache:
    """Evaluations against `gold` that are kept in `folder`."""

    def __init__(self, folder: Path, gold: Gold) -> None:
        self._folder = folder
        self._inputs = f"{code_sha256()} {_gold_key(gold)}"
        self._index: dict[str, list[str]] = read_json(folder / INDEX) or {}
        self._stamps: dict[str, str] = {}

    def of_folder(self, entry: Path) -> Evaluation | None:
        """Return the evaluation of a folder that has not changed since; None if unknown."""
        place = str(entry.resolve())
        self._stamps[place] = stamp_of(entry)
        stamp, sha256 = self._index.get(place, ("", ""))
        return self.of_files(sha256, entry) if stamp and stamp == self._stamps[place] else None

    def of_files(self, sha256: str, entry: Path) -> Evaluation | None:
        """Return the evaluation of the folder `entry` with this hash of its files."""
        try:
            return _read(self._path(sha256, entry), entry)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return None  # missing or damaged: compute and replace it

    def add(self, evaluation: Evaluation) -> None:
        """Keep an evaluation whose files were read."""
        assert evaluation.sha256 is not None
        _write(self._path(evaluation.sha256, evaluation.folder), evaluation)

    def remember(self, evaluations: Iterable[Evaluation]) -> None:
        """Note which files were read in folders that `of_folder` did not know."""
        for evaluation in evaluations:
            place = str(evaluation.folder.resolve())
            stamp = self._stamps.get(place)  # from before the files were read
            if stamp and evaluation.sha256:
                self._index[place] = [stamp, evaluation.sha256]
        files.write_text(self._folder / INDEX, json.dumps(self._index))

    def _path(self, sha256: str, entry: Path) -> Path:
        # The name too, since a slug must be the folder's name.
        inputs = f"{self._inputs} {entry.resolve().name} {sha256}"
        return self._folder / hashlib.sha256(inputs.encode(errors="surrogateescape")).hexdigest()


def stamp_of(folder: Path) -> str:
    """Return a hash of the status of a folder's files; "" if it may not notice the next change."""
    try:
        found = sorted(list_files(folder).items())
    except Rejected:
        return ""
    newest = max(status.st_ctime_ns for _, status in found)
    if newest > time.time_ns() - SETTLED_NS:
        return ""
    values = [(p, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for p, s in found]
    return hashlib.sha256(repr(values).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a file of the cache; None if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


CHECKED_CODE = (".", "leaderboard", "glue", "models", "objectives", "report", "train")


@cache
def code_sha256(folders: tuple[str, ...] = CHECKED_CODE) -> str:
    """Return a SHA-256 of the evaluation's code: a changed check invalidates the cache."""
    sha = hashlib.sha256()
    package = package_files("smallbench")
    for file in sorted((f for name in folders for f in (package / name).iterdir()), key=str):
        if file.is_file() and not file.name.endswith((".pyc", ".so")):
            sha.update(file.name.encode() + b"\n" + file.read_bytes())
    return sha.hexdigest()


def _gold_key(gold: Gold) -> str:
    parts = [
        f"{name} {split} {labels.dtype} {hashlib.sha256(labels.tobytes()).hexdigest()}"
        for name, splits in gold.labels.items()
        for split, labels in splits.items()
    ]
    choices = [f"{name} {choice.sha256}" for name, choice in sorted(gold.choices.items())]
    return "\n".join([*parts, *choices, *sorted(gold.pinned), str(gold.is_sample)])


def _write(path: Path, evaluation: Evaluation) -> None:
    entry, evidence = evaluation.entry, evaluation.evidence
    content = report_dict(evaluation) | {
        "entry": entry and entry_to_dict(entry),
        "tracks": evaluation.tracks,
        "curve": evaluation.curve,
    }
    if evidence:
        answers = {task: (len(a), a.tobytes().hex()) for task, a in evidence.answers.items()}
        content |= {"answers": answers, "digests": dict(evidence.digests)}
        content["losses"] = evidence.losses
    views = evaluation.views.values()
    draws = np.array([rows for view in views for rows in view.task_draws.values()], np.float32)
    content["draws_crc32"] = zlib.crc32(draws.data)
    with files.atomic_writer(path.with_suffix(".npy")) as stream:
        np.save(stream, draws)
    # Last, since its presence means that the draws are complete. It is parsed, so needs no flush.
    with files.atomic_writer(path.with_suffix(".json"), flush=False) as stream:
        stream.write(json.dumps(content).encode())


def _read(path: Path, folder: Path) -> Evaluation:
    content = json.loads(path.with_suffix(".json").read_bytes())
    findings = tuple(Finding(**finding) for finding in content["findings"])
    if content["entry"] is None:
        return Evaluation(folder, content["sha256"], None, findings, {})
    draws = np.asarray(np.load(path.with_suffix(".npy"), mmap_mode="r"))
    if zlib.crc32(draws.data) != content["draws_crc32"]:
        raise ValueError("damaged draws")
    rows = iter(draws)
    views: dict[ViewName, View] = {}
    for name, view in content["views"].items():
        tasks = {task: TaskScore.from_dict(cell) for task, cell in view["tasks"].items()}
        views[name] = View(name, view["protocol"], tasks, {task: next(rows) for task in tasks})
    answers = {
        task: np.frombuffer(bytes.fromhex(text), np.int8).reshape(num, -1)
        for task, (num, text) in content["answers"].items()
    }
    entry = entry_from_dict(content["entry"])
    return Evaluation(
        folder,
        content["sha256"],
        entry,
        findings,
        views,
        tracks=tuple(content["tracks"]),
        evidence=Evidence(entry, answers, content["digests"], content["losses"]),
        curve=content["curve"],
    )
