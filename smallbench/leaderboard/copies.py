"""Find parts that entries share: answers, logs, weights, configurations and names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.finding import Finding, Rejected
from smallbench.leaderboard.folder import list_files, parse_submission, read_bytes, read_files
from smallbench.leaderboard.predictions import (
    MAX_LINE_BYTES,
    MAX_PREDICTIONS_BYTES,
    trailer,
    unpack,
)
from smallbench.leaderboard.text import show, skeleton

COMPARED = ("cola", "sst2", "mrpc", "rte")
"""Tasks whose answers are compared: small, and with two classes."""
NEAR = 0.5
"""A near-copy: the nearest runs of two entries differ in less than this fraction of the rows in
which the nearest seeds of either entry differ. Among 60 independent synthetic models at the
official sizes (1,770 pairs a task) the fraction is at least 0.88 on CoLA, 0.78 on SST-2, 0.75 on
MRPC and 0.75 on RTE."""
MIN_ROWS = 200
"""Smaller dev sets are not compared; the official ones have at least 277 rows."""
MAX_UNPACKED_BYTES = MAX_LINE_BYTES * max(
    task.split(split).num_rows + 1 for task in TASKS.values() for split in task.dev_splits
)

Answers = Mapping[str, NDArray[Any]]
"""Task to [S, N] classes."""


# ---- equal answers


def copied_answers(
    folders: Collection[Path], among: Iterable[Path] = ()
) -> dict[Path, list[Finding]]:
    """Return each folder with its predictions that equal others in `folders` or `among`.

    Constant predictions do not count. Files of `among` are only unpacked for a comparison.
    """
    alike: dict[bytes, list[tuple[Path, str]]] = {}
    for folder in sorted({*folders, *among}):
        for path, end in _trailers(folder).items():
            alike.setdefault(end, []).append((folder, path))
    findings: dict[Path, list[Finding]] = {}
    for places in alike.values():
        owners = {folder for folder, _ in places}
        if len(owners) < 2 or owners.isdisjoint(folders):
            continue
        equal: dict[bytes, list[tuple[Path, str]]] = {}
        for folder, path in places:
            equal.setdefault(hashlib.sha256(_answers(folder / path)).digest(), []).append(
                (folder, path)
            )
        for copies in equal.values():
            for folder, path in copies:
                others = [copy for copy in copies if copy[0] != folder]
                if folder in folders and others and _is_varied(_answers(folder / path)):
                    reason = f"{path} equals {show(others[0][0].name)}/{others[0][1]}"
                    findings.setdefault(folder, []).append(Finding("copies", "flagged", reason))
    return findings


def _answers(path: Path) -> bytes:
    try:
        return unpack(read_bytes(path, MAX_PREDICTIONS_BYTES), path.name, MAX_UNPACKED_BYTES)
    except Rejected:
        return b""


def _is_varied(text: bytes) -> bool:
    return len({line.partition(b"\t")[2] for line in text.splitlines()[1:]}) > 1


def _trailers(folder: Path) -> dict[str, bytes]:
    try:
        return {path: trailer(folder / path) for path in sorted(list_files(folder)) if "/" in path}
    except Rejected:
        return {}


# ---- answers that agree too often


def answers_of(folder: Path) -> tuple[Answers, Entry | None]:
    """Return the answers to compare, and the entry; None if it cannot be read."""
    try:
        read = parse_submission(folder, read_files(folder))
    except Rejected:
        return {}, None
    return compared_answers(read.runs, read.predictions), read.entry


def compared_answers(runs: Sequence[Any], predictions: Mapping[str, NDArray[Any]]) -> Answers:
    """Return the answers of runs on the tasks of `COMPARED`."""
    found: dict[str, NDArray[Any]] = {}
    for task in COMPARED:
        rows = [predictions[run.predictions["dev"]] for run in runs if run.task == task]
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) >= MIN_ROWS:
            found[task] = np.stack(rows).astype(np.int8)
    return found


def near_copies(
    answers: Mapping[Path, Answers], folders: Collection[Path]
) -> dict[Path, list[Finding]]:
    """Return each folder with the entries that agree with it more than independent models do."""
    findings: dict[Path, list[Finding]] = {}
    for task in COMPARED:
        groups: dict[int, list[Path]] = {}
        for folder, of_folder in answers.items():
            if task in of_folder:
                groups.setdefault(of_folder[task].shape[1], []).append(folder)
        for length, places in groups.items():
            for a, b, rows, usual in _near_pairs(task, length, places, answers):
                for one, other in ((a, b), (b, a)):
                    if one in folders:
                        reason = (
                            f"{task}: a run differs from one of {show(other.name)} in {rows} rows, "
                            f"while seeds of one model differ in {usual}"
                        )
                        findings.setdefault(one, []).append(Finding("copies", "flagged", reason))
    return findings


def _near_pairs(
    task: str, length: int, places: Sequence[Path], answers: Mapping[Path, Answers]
) -> list[tuple[Path, Path, int, int]]:
    """Return pairs of entries with the differing rows of their nearest runs and of their seeds."""
    signs, owner = [], []
    for number, place in enumerate(places):
        rows = answers[place][task]
        # constant answers are equal without being copied
        varied = rows[(rows != rows[:, :1]).any(axis=1)]
        signs.append(2.0 * varied - 1.0)
        owner += [number] * len(varied)
    if not owner:
        return []
    all_runs = np.concatenate(signs).astype(np.float32)
    owners = np.array(owner)
    differing = np.rint((length - all_runs @ all_runs.T) / 2).astype(np.int32)
    np.fill_diagonal(differing, length)
    nearest = np.full((len(places), len(places)), length, dtype=np.int32)
    np.minimum.at(nearest, (owners[:, None], owners[None, :]), differing)
    own = np.diag(nearest)
    usual = np.minimum(own[:, None], own[None, :])
    # A check of its own compares the seeds of one entry.
    found = np.argwhere(np.triu((nearest < NEAR * usual) & (nearest > 0), 1))
    return [(places[a], places[b], int(nearest[a, b]), int(usual[a, b])) for a, b in found]


# ---- logs, weights, configurations, names


def shared_evidence(
    entries: Mapping[Path, Entry], folders: Collection[Path]
) -> dict[Path, list[Finding]]:
    """Return each folder with the evidence that it shares with another entry."""
    seen: dict[tuple[str, Any], list[Path]] = {}
    for folder, entry in entries.items():
        for key in _evidence(entry):
            seen.setdefault(key, []).append(folder)
    findings: dict[Path, list[Finding]] = {}
    for (what, _), places in seen.items():
        for place in places:
            others = [other for other in places if other != place]
            if others and place in folders:
                check = "names" if what.startswith("name") else "copies"
                reason = f"{what} {show(others[0].name)}"
                findings.setdefault(place, []).append(Finding(check, "flagged", reason))
    return findings


def _evidence(entry: Entry) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("name resembles that of", skeleton(entry.name))]
    if entry.reported is not None:
        return found
    measured = entry.measured
    provenance = measured.provenance
    if provenance.train_log_sha256 is not None:
        found.append(("the training log equals that of", provenance.train_log_sha256))
    found.append(("the weights equal those of", measured.finetune.model_sha256))
    found.append(
        ("the configuration, including its seed, equals that of", provenance.config_digest)
    )
    return found
