"""Evaluate an entry's folder: read, check and score it, and assign the tier of its evidence.

Results that depend only on a folder's bytes and the gold labels are cached by their hash, so that a
board of hundreds of entries is built in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from smallbench.errors import DataError
from smallbench.leaderboard import statistics
from smallbench.leaderboard.cache import EvaluationCache
from smallbench.leaderboard.checks import run_checks
from smallbench.leaderboard.copies import Evidence, evidence_of, shared_parts
from smallbench.leaderboard.entry import ENTRY_FILE
from smallbench.leaderboard.finding import Finding, Rejected
from smallbench.leaderboard.folder import (
    chosen_tasks,
    fingerprint,
    parse_submission,
    parse_untrusted_json,
    prepare_schema,
    read_bytes,
    read_files,
    read_submission,
)
from smallbench.leaderboard.gold import Gold, with_choices
from smallbench.leaderboard.guard import LIMITS, Failure, Limits, call_each
from smallbench.leaderboard.log_check import curve_points
from smallbench.leaderboard.scores import RunScores, View, ViewName, paper_view, robust_view
from smallbench.leaderboard.tracks import tracks_of
from smallbench.leaderboard.verdict import Evaluation

VERIFIED_FILE = "verified.json"
"""File beside the folders of entries, written by the board's keepers: slug to the fingerprint of
the folder that a keeper has repeated."""
MAX_VERIFIED_BYTES = 1 << 20
MAX_DAYS = 60
"""From the date of a new entry to the day of its check."""


def evaluate(folder: Path, gold: Gold, kept: EvaluationCache | None = None) -> Evaluation:
    """Evaluate one folder in this process, without limits: for folders that were read before."""
    try:
        contents = read_files(folder)
    except Rejected as error:
        return _refused(folder, error)
    sha256 = fingerprint(contents)
    evaluation = kept and kept.of_files(sha256, folder)
    if evaluation:
        return evaluation
    try:
        read = parse_submission(folder, contents)
    except Rejected as error:
        evaluation = _refused(folder, error, sha256)
    else:
        scores = RunScores(read, gold)
        findings = tuple(run_checks(read, scores))
        views: dict[ViewName, View] = {}
        if read.runs and not any(finding.verdict == "rejected" for finding in findings):
            found = (robust_view(scores), paper_view(scores))
            views = {view.name: view for view in found if view is not None}
        evaluation = Evaluation(
            folder,
            sha256,
            read.entry,
            findings,
            views,
            tracks=tuple(t for t, no in tracks_of(read.entry, read.train_log).items() if not no),
            evidence=evidence_of(read),
            curve=curve_points(read.train_log),
        )
    if kept:
        kept.add(evaluation)
    return evaluation


def evaluate_each(
    folders: Sequence[Path], gold: Gold, *, cache: Path | None = None, limits: Limits = LIMITS
) -> list[Evaluation]:
    """Evaluate each folder under limits. Any folder content results in an `Evaluation`."""
    gold = with_choices(gold, chosen_tasks(folders), cache=cache)  # once for all processes
    kept = EvaluationCache(cache, gold) if cache else None
    known = {folder: found for folder in folders if kept and (found := kept.of_folder(folder))}
    unknown = [folder for folder in folders if folder not in known]
    if unknown:
        with threadpool_limits(1):  # a process for each core; threads would only slow each other
            prepare_schema()
            statistics.prepare_draws(gold.labels)
            results = call_each(lambda one: evaluate(one, gold, kept), unknown, limits=limits)
        for folder, result in zip(unknown, results, strict=True):
            if isinstance(result, Failure):
                result = _refused(folder, Rejected(result.kind, result.reason))
            known[folder] = result
        if kept:
            kept.remember(known[folder] for folder in unknown)
    return [known[folder] for folder in folders]


def evaluate_beside(
    folder: Path, gold: Gold, *, today: date | None = None, cache: Path | None = None
) -> Evaluation:
    """Evaluate one folder and compare it with the other entries in the same directory.

    `today` is that of a submission: the entry's date must be near it.
    """
    folder = folder.absolute()  # `.` has no name
    others = [one for one in entry_folders(folder.resolve().parent) if one != folder.resolve()]
    if cache:  # the labels of the whole board, as in the keys of its evaluations
        gold = with_choices(gold, chosen_tasks([folder, *others]), cache=cache)
    (evaluation,) = evaluate_each([folder], gold, cache=cache)
    peers: dict[Path, Evidence] = {}
    if not evaluation.rejected:
        kept = EvaluationCache(cache, gold) if cache else None
        known = {one: found for one in others if kept and (found := kept.of_folder(one))}
        peers = {one: e.evidence for one, e in known.items() if e.evidence}
        unknown = [one for one in others if one not in known]
        for one, evidence in zip(unknown, call_each(_read_evidence, unknown), strict=True):
            if isinstance(evidence, Evidence):
                peers[one] = evidence
    (evaluation,) = _together([evaluation], peers)
    return evaluation if today is None else _with_age(evaluation, today)


def _with_age(evaluation: Evaluation, today: date) -> Evaluation:
    entry = evaluation.entry
    if entry is None or evaluation.rejected:
        return evaluation
    days = (today - date.fromisoformat(entry.date)).days
    if days < -1:  # tomorrow is today in another time zone
        finding = Finding("date", "rejected", f"{entry.date} is in the future")
        return replace(evaluation, findings=(*evaluation.findings, finding), views={})
    if days > MAX_DAYS and entry.tier != "reported":  # quoted scores may have their paper's date
        finding = Finding("date", "flagged", f"{entry.date}, the submission's, is {days} days ago")
        return replace(evaluation, findings=(*evaluation.findings, finding))
    return evaluation


def _read_evidence(folder: Path) -> Evidence | None:
    try:
        return evidence_of(read_submission(folder))
    except Rejected:
        return None


def evaluate_all(root: Path, gold: Gold, *, cache: Path | None = None) -> list[Evaluation]:
    """Evaluate every entry below `root`, in the order of slugs, whatever day it is.

    Raises `DataError` if there is none.
    """
    folders = entry_folders(root)
    if not folders:
        raise DataError(f"{root} has no entries; expected folders SLUG/ with {ENTRY_FILE}")
    return _together(evaluate_each(folders, gold, cache=cache), {})


def entry_folders(root: Path) -> list[Path]:
    """Return the folders of entries below `root`."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _together(
    evaluations: Sequence[Evaluation], peers: Mapping[Path, Evidence]
) -> list[Evaluation]:
    own = {e.folder.resolve(): e.evidence for e in evaluations if e.evidence and not e.rejected}
    shared = shared_parts({**peers, **own}, own)
    verified = {root: _verified(root) for root in {e.folder.resolve().parent for e in evaluations}}
    result = []
    for evaluation in evaluations:
        folder = evaluation.folder.resolve()
        more = shared.get(folder, [])
        word = verified[folder.parent].get(folder.name)
        is_verified = word is not None and word == evaluation.sha256
        findings = (*evaluation.findings, *more)
        result.append(replace(evaluation, findings=findings, is_verified=is_verified))
    return result


def _verified(root: Path) -> dict[str, Any]:
    if not (root / VERIFIED_FILE).exists():
        return {}
    try:
        content = read_bytes(root / VERIFIED_FILE, MAX_VERIFIED_BYTES)
        words = parse_untrusted_json(content, check="verified", place=VERIFIED_FILE)
    except Rejected as error:
        raise DataError(f"{root}: {error.reason}") from None
    return words if isinstance(words, dict) else {}


def _refused(folder: Path, error: Rejected, sha256: str | None = None) -> Evaluation:
    finding = Finding(error.check, "rejected", error.reason)
    return Evaluation(folder, sha256, None, (finding,), {})
