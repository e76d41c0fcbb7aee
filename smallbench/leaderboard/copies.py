"""Find copied runs, and what entries share: answers, logs, weights, configurations and names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.finding import Finding
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.gold import Labels
from smallbench.leaderboard.text import show, skeleton
from smallbench.leaderboard.tracks import Log

MIN_VARIED = 0.05
"""Equal answers are copies only if at least this fraction of the rows is not the median answer."""
NEARLY_EQUAL = {"cola": 0.02, "mrpc": 0.02, "rte": 0.02, "sst2": 0.005}
"""Fraction of the rows in which two independent runs differ at least; else 0.002. Measured seeds of
one model: 8 % of CoLA, 7 % of MRPC, 5 % of RTE, 8 % of SST-2 (3 % in larger models)."""
MAX_CORRELATION = 0.999
"""Of two runs of STS-B; measured seeds have up to 0.98, rates up to 0.97."""
COMPARED = ("cola", "sst2", "mrpc", "rte")
"""Tasks whose answers are compared: small, and with two classes."""
NEAR = 0.5
"""A near-copy: the nearest runs of two entries differ in less than this fraction of the rows in
which the nearest seeds of either entry differ. Among 60 independent synthetic models at the
official sizes (1,770 pairs a task) the fraction is at least 0.88 on CoLA, 0.78 on SST-2, 0.75 on
MRPC and 0.75 on RTE."""
NUM_LOSSES = 32
"""Losses of two logs are compared at this many places: so few that rounding hides small changes."""
MIN_ROWS = 200
"""Smaller dev sets are not compared; the official ones have at least 277 rows."""

Answers = Mapping[str, NDArray[Any]]
"""Task to [S, N] classes."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is compared between entries."""

    entry: Entry
    answers: Answers
    digests: Mapping[str, str]
    """File of predictions to a SHA-256 of its answers; empty if these are all the same."""
    losses: str | None
    """Hash of rounded losses of the log, at even distances."""


def evidence_of(submission: Submission) -> Evidence:
    """Return the evidence of a parsed submission."""
    answers: dict[str, NDArray[Any]] = {}
    for task in COMPARED:
        paths = [run.predictions["dev"] for run in submission.runs if run.task == task]
        rows = [submission.predictions[path] for path in paths]
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) >= MIN_ROWS:
            answers[task] = np.stack(rows).astype(np.int8)
    digests = {path: _digest(found) for path, found in sorted(submission.predictions.items())}
    return Evidence(submission.entry, answers, digests, _hash_of_losses(submission.train_log))


def _digest(answers: NDArray[Any]) -> str:
    is_varied = (answers[1:] != answers[:-1]).any()
    return hashlib.sha256(answers.tobytes()).hexdigest() if is_varied else ""


def _hash_of_losses(log: Log) -> str | None:
    """Return a hash that another chain, name or time does not change; None without losses."""
    losses = [line["loss"] for line in log[:: max(1, len(log) // NUM_LOSSES)]]
    if len(losses) < NUM_LOSSES or None in losses:
        return None
    return hashlib.sha256(repr([round(loss, 2) for loss in losses]).encode()).hexdigest()


def shared_parts(
    evidence: Mapping[Path, Evidence], folders: Collection[Path]
) -> dict[Path, list[Finding]]:
    """Return each of `folders` with the findings about what it shares with other entries."""
    found: dict[Path, list[Finding]] = {folder: [] for folder in folders}
    answers = {folder: one.answers for folder, one in evidence.items()}
    shared = (copied_answers(evidence), near_copies(answers), shared_claims(evidence))
    for folder, check, reason in chain(*shared):
        if folder in found:
            found[folder].append(Finding(check, "flagged", reason))
    return found


Shared = Iterator[tuple[Path, str, str]]
"""An entry's folder, the name of the check and what it shares."""

# ---- answers of one entry's runs


def copied_runs(task: str, answers: Mapping[Any, Labels]) -> Iterator[tuple[Any, Any, str]]:
    """Yield an earlier and a later run if one is a copy of the other, and how they differ.

    Answers of almost one class are nearly equal without being copied.
    """
    varied = [
        (run, found)
        for run, found in answers.items()
        if _num_differing(task, found, np.median(found)) >= MIN_VARIED * len(found)
    ]
    for number, (later, b) in enumerate(varied):
        for earlier, a in varied[:number]:
            if len(a) != len(b):
                continue
            rows = _num_differing(task, a, b)
            if rows <= NEARLY_EQUAL.get(task, 0.002) * len(a):
                yield earlier, later, f" except for {rows} rows" if rows else ""
            elif TASKS[task].is_regression and np.corrcoef(a, b)[0, 1] > MAX_CORRELATION:
                yield earlier, later, " except for noise"


def _num_differing(task: str, a: Labels, b: Labels) -> int:
    return int(np.count_nonzero(np.abs(a - b) > 0.01 if TASKS[task].is_regression else a != b))


# ---- equal answers of two entries


def copied_answers(evidence: Mapping[Path, Evidence]) -> Shared:
    """Find predictions that equal another entry's; constant ones do not count."""
    equal: dict[str, list[tuple[Path, str]]] = {}
    for folder in sorted(evidence):
        for path, digest in evidence[folder].digests.items():
            if digest:
                equal.setdefault(digest, []).append((folder, path))
    for copies in equal.values():
        for folder, path in copies:
            others = [copy for copy in copies if copy[0] != folder]
            if others:
                other, same = others[0]
                yield folder, "copies", f"{path} equals {show(other.name)}/{same}"


# ---- answers of two entries that agree too often


def near_copies(answers: Mapping[Path, Answers]) -> Shared:
    """Find entries whose answers agree more than those of independent models do."""
    for task in COMPARED:
        groups: dict[int, list[Path]] = {}
        for folder, of_folder in answers.items():
            if task in of_folder:
                groups.setdefault(of_folder[task].shape[1], []).append(folder)
        for length, places in groups.items():
            floor = NEARLY_EQUAL[task] * length
            for a, b, rows, least in _near_pairs([answers[p][task] for p in places], floor=floor):
                for one, other in ((places[a], places[b]), (places[b], places[a])):
                    reason = (
                        f"{task}: a run differs from one of {show(other.name)} in {rows} rows, "
                        f"while independent runs differ in at least {least:.0f}"
                    )
                    yield one, "copies", reason


def _near_pairs(
    answers: Sequence[NDArray[Any]], *, floor: float
) -> list[tuple[int, int, int, float]]:
    """Return pairs of entries with the differing rows of their nearest runs, and the least allowed.

    That is at least `floor`, since an entry's own seeds may be copies of one run.
    """
    length = answers[0].shape[1]
    # Answers of almost one class are nearly equal without being copied.
    share = [rows.mean(axis=1) for rows in answers]
    varied = [
        rows[np.minimum(ones, 1 - ones) >= MIN_VARIED]
        for rows, ones in zip(answers, share, strict=True)
    ]
    known = [number for number, rows in enumerate(varied) if len(rows)]
    if not known:
        return []
    all_runs = 2.0 * np.concatenate([varied[number] for number in known]).astype(np.float32) - 1.0
    differing = (length - all_runs @ all_runs.T) / 2
    np.fill_diagonal(differing, length)
    starts = np.cumsum([0, *(len(varied[number]) for number in known)])[:-1]
    nearest = np.minimum.reduceat(np.minimum.reduceat(differing, starts), starts, axis=1)
    nearest = np.rint(nearest).astype(np.int32)
    own = np.diag(nearest)
    least = np.maximum(NEAR * np.minimum(own[:, None], own[None, :]), floor)
    # A check of its own compares the seeds of one entry.
    found = np.argwhere(np.triu((nearest < least) & (nearest > 0), 1))
    return [(known[a], known[b], int(nearest[a, b]), float(least[a, b])) for a, b in found]


# ---- logs, weights, configurations, names


def shared_claims(evidence: Mapping[Path, Evidence]) -> Shared:
    """Find names that look alike, and equal logs, weights and configurations."""
    seen: dict[tuple[str, Any], list[Path]] = {}
    for folder, one in evidence.items():
        for key in _claims(one.entry, one.losses):
            seen.setdefault(key, []).append(folder)
    for (what, _), places in seen.items():
        for place in places:
            others = [other for other in places if other != place]
            if others:
                check = "names" if what.startswith("name") else "copies"
                yield place, check, f"{what} {show(others[0].name)}"


def _claims(entry: Entry, losses: str | None) -> Iterator[tuple[str, Any]]:
    yield "name resembles that of", skeleton(entry.name)
    if entry.provenance is not None:
        if entry.provenance.train_log_sha256 is not None:
            yield "the training log equals that of", entry.provenance.train_log_sha256
        if losses is not None:
            yield "the losses of the training log equal those of", losses
        yield "the weights equal those of", entry.measured.finetune.model_sha256
        digest = entry.provenance.config_digest
        yield "the configuration, including its seed, equals that of", digest
