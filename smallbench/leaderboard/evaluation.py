"""Evaluate an entry's folder: read, check and score it, and assign the tier of its evidence.

Results that depend only on a folder's bytes and the gold labels are cached by their hash, so that a
board of hundreds of entries is built in seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache as remembered
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from threadpoolctl import threadpool_limits

from smallbench import files
from smallbench.errors import DataError
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import folder as reading
from smallbench.leaderboard import statistics
from smallbench.leaderboard.checks import run_checks
from smallbench.leaderboard.copies import (
    Answers,
    answers_of,
    compared_answers,
    copied_answers,
    near_copies,
    shared_evidence,
)
from smallbench.leaderboard.entry import ENTRY_FILE, Entry, Tier, entry_from_dict, entry_to_dict
from smallbench.leaderboard.finding import Finding, Rejected
from smallbench.leaderboard.folder import (
    chosen_tasks,
    fingerprint,
    parse_submission,
    parse_untrusted_json,
    read_bytes,
    read_files,
)
from smallbench.leaderboard.gold import Gold, labels_sha256, with_choices
from smallbench.leaderboard.guard import LIMITS, Failure, Limits, call_each
from smallbench.leaderboard.scores import (
    RunScores,
    TaskScore,
    View,
    ViewName,
    paper_view,
    robust_view,
)
from smallbench.leaderboard.statistics import Interval
from smallbench.leaderboard.text import show
from smallbench.leaderboard.tracks import tracks_of

VERIFIED_FILE = "verified.json"
"""File beside the folders of entries, written by the board's keepers: slug to the fingerprint of
the folder that a keeper has repeated."""
MAX_VERIFIED_BYTES = 1 << 20
MARKS = {"passed": "ok", "flagged": "flagged", "not done": "not done", "rejected": "REJECTED"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of evaluating a folder."""

    folder: Path
    sha256: str | None
    """Hash of the folder's files; None if they cannot be listed."""
    entry: Entry | None
    """None if it could not be read."""
    findings: tuple[Finding, ...]
    views: Mapping[ViewName, View]
    """Scores; views that the runs do not allow are absent, as are all views of a rejected entry."""
    is_verified: bool = False
    tracks: tuple[str, ...] = ()
    """Rankings that admit the entry (`tracks.TRACKS`)."""
    answers: Answers = field(default_factory=dict, repr=False)
    """Answers that are compared with those of other entries."""

    @property
    def rejected(self) -> bool:
        """Whether a check rejects the entry."""
        return any(finding.verdict == "rejected" for finding in self.findings)

    @property
    def tier(self) -> Tier | None:
        """The tier that the evidence supports, at most the requested one; None if rejected.

        If a check could not be done the tier is *claimed*; only keepers assign *verified*.
        """
        if self.rejected or self.entry is None:
            return None
        if self.entry.tier == "reported" or self.is_verified:
            return "verified" if self.is_verified else "reported"
        open_questions = any(finding.verdict == "not done" for finding in self.findings)
        return "claimed" if open_questions else self.entry.tier


def evaluate(folder: Path, gold: Gold, *, cache: Path | None = None) -> Evaluation:
    """Evaluate one folder in this process, without limits: for folders that were read before."""
    try:
        contents = read_files(folder)
    except Rejected as error:
        return _refused(folder, None, error)
    sha256 = fingerprint(contents)
    gold = with_choices(gold, chosen_tasks([folder]), cache=cache)  # here if it was not done before
    kept = None if cache is None else cache / _key(sha256, gold)
    if kept is not None and (evaluation := _read(kept, folder)):
        return evaluation
    try:
        read = parse_submission(folder, contents)
    except Rejected as error:
        return _refused(folder, sha256, error)
    scores = RunScores(read, gold)
    findings = tuple(run_checks(read, scores))
    views: dict[ViewName, View] = {}
    if read.runs and not any(finding.verdict == "rejected" for finding in findings):
        found = (robust_view(scores), paper_view(scores))
        views = {view.name: view for view in found if view is not None}
    tracks = tracks_of(read.entry, read.train_log)
    evaluation = Evaluation(
        folder,
        sha256,
        read.entry,
        findings,
        views,
        tracks=tuple(name for name, reasons in tracks.items() if not reasons),
        answers=compared_answers(read.runs, read.predictions),
    )
    if kept is not None:
        _write(kept, evaluation)
    return evaluation


def evaluate_each(
    folders: Sequence[Path], gold: Gold, *, cache: Path | None = None, limits: Limits = LIMITS
) -> list[Evaluation]:
    """Evaluate each folder under limits. Any folder content results in an `Evaluation`."""

    def one(folder: Path) -> Evaluation:
        return evaluate(folder, gold, cache=cache)

    gold = with_choices(gold, chosen_tasks(folders), cache=cache)  # once for all processes
    with threadpool_limits(1):  # a process for each core; threads would only slow each other down
        reading.build_tables()
        statistics.prepare_draws(gold.labels)
        found = call_each(one, folders, limits=limits)
    return [
        _refused(folder, None, Rejected(result.kind, result.reason))
        if isinstance(result, Failure)
        else result
        for folder, result in zip(folders, found, strict=True)
    ]


def evaluate_beside(
    folder: Path, gold: Gold, *, today: date | None = None, cache: Path | None = None
) -> Evaluation:
    """Evaluate one folder and compare it with the other entries in the same directory."""
    folder = folder.absolute()  # `.` has no name
    others = entry_folders(folder.resolve().parent)
    (evaluation,) = _together(evaluate_each([folder], gold, cache=cache), today, among=others)
    return evaluation


def evaluate_all(
    root: Path, gold: Gold, *, today: date | None = None, cache: Path | None = None
) -> list[Evaluation]:
    """Evaluate every entry below `root`, in the order of slugs.

    Raises `DataError` if there is none.
    """
    folders = entry_folders(root)
    if not folders:
        raise DataError(f"{root} has no entries; expected folders SLUG/ with {ENTRY_FILE}")
    return _together(evaluate_each(folders, gold, cache=cache), today)


def entry_folders(root: Path) -> list[Path]:
    """Return the folders of entries below `root`."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _together(
    evaluations: Sequence[Evaluation], today: date | None, *, among: Iterable[Path] = ()
) -> list[Evaluation]:
    accepted = {e.folder.resolve() for e in evaluations if not e.rejected}
    among = list(among)
    copies = copied_answers(accepted, among) if accepted else {}
    known = {e.folder.resolve(): e.answers for e in evaluations if not e.rejected}
    entries = {e.folder.resolve(): e.entry for e in evaluations if e.entry and not e.rejected}
    unknown = [place for place in map(Path.resolve, among) if accepted and place not in known]
    for place, answered in zip(unknown, call_each(answers_of, unknown), strict=True):
        if not isinstance(answered, Failure):
            known[place], other = answered
            if other is not None:
                entries[place] = other
    near, shared = near_copies(known, accepted), shared_evidence(entries, accepted)
    verified = {root: _verified(root) for root in {e.folder.resolve().parent for e in evaluations}}
    result = []
    for evaluation in evaluations:
        folder = evaluation.folder.resolve()
        more = [*copies.get(folder, ()), *near.get(folder, ()), *shared.get(folder, ())]
        entry = evaluation.entry
        if entry and today and not evaluation.rejected and entry.date > today.isoformat():
            more.append(Finding("date", "flagged", f"{entry.date} is in the future"))
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


def _refused(folder: Path, sha256: str | None, error: Rejected) -> Evaluation:
    finding = Finding(error.check, "rejected", error.reason)
    return Evaluation(folder, sha256, None, (finding,), {})


# ---- reports


def report_text(evaluation: Evaluation) -> str:
    """Return the findings, a line each, then the scores."""
    lines = []
    for finding in evaluation.findings:
        reason = f": {finding.reason}" if finding.reason else ""
        lines.append(f"{MARKS[finding.verdict]:<9} {finding.check}{reason}")
    for view in evaluation.views.values():
        cells = [f"{TASKS[name].column} {cell.score:.2f}" for name, cell in view.tasks.items()]
        average = "no AVG"
        if view.interval is not None:
            low, high = view.interval.low, view.interval.high
            average = f"AVG {view.average:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"{view.name}: {average}; {', '.join(cells) or 'nothing scored'}")
    name = show(evaluation.folder.name)
    verdict = "rejected" if evaluation.rejected else f"accepted as {evaluation.tier}"
    return "\n".join([*lines, f"{name}: {verdict}"])


def report_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return the same values, ready for JSON."""
    return {
        "slug": show(evaluation.folder.name),
        "rejected": evaluation.rejected,
        "tier": evaluation.tier,
        "sha256": evaluation.sha256,
        "findings": [dataclasses.asdict(finding) for finding in evaluation.findings],
        "views": {
            view.name: {
                "protocol": view.protocol,
                "average": view.average,
                "interval": view.interval and dataclasses.asdict(view.interval),
                "tasks": {name: dataclasses.asdict(cell) for name, cell in view.tasks.items()},
            }
            for view in evaluation.views.values()
        },
    }


# ---- the cache


def _key(sha256: str, gold: Gold) -> str:
    return hashlib.sha256(f"{code_sha256()} {_gold_key(gold)} {sha256}".encode()).hexdigest()


@remembered
def code_sha256() -> str:
    """Return a SHA-256 of the evaluation's code: a changed check invalidates the cache."""
    sha = hashlib.sha256()
    package = package_files("smallbench")
    places = [package, *(package / name for name in ("leaderboard", "glue", "models"))]
    for file in sorted((f for place in places for f in place.iterdir()), key=str):
        if file.name.endswith((".py", ".json")):
            sha.update(file.name.encode() + b"\n" + file.read_bytes())
    return sha.hexdigest()


@lru_cache(maxsize=4)
def _gold_key(gold: Gold) -> str:
    parts = [
        f"{name} {split} {labels_sha256(TASKS[name], labels)}"
        for name, splits in gold.labels.items()
        for split, labels in splits.items()
    ]
    choices = [f"{name} {choice.sha256}" for name, choice in sorted(gold.choices.items())]
    return "\n".join([*parts, *choices, *sorted(gold.pinned), str(gold.is_sample)])


def _write(path: Path, evaluation: Evaluation) -> None:
    assert evaluation.entry is not None
    content = report_dict(evaluation) | {
        "entry": entry_to_dict(evaluation.entry),
        "tracks": evaluation.tracks,
    }
    draws: dict[str, Any] = {f"answers {task}": a for task, a in evaluation.answers.items()} | {
        f"{view.name} {task}": values
        for view in evaluation.views.values()
        for task, values in view.task_draws.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_sibling(path.with_suffix(".npz"))
    with temporary.open("wb") as stream:
        np.savez(stream, **draws)
    temporary.replace(path.with_suffix(".npz"))
    # Last, since its presence means that the draws are complete.
    files.write_text(path.with_suffix(".json"), json.dumps(content))


def _read(path: Path, folder: Path) -> Evaluation | None:
    try:
        content = json.loads(path.with_suffix(".json").read_bytes())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            draws = {key: stored[key] for key in stored}
        views: dict[ViewName, View] = {}
        for name, view in content["views"].items():
            tasks = {task: _task_score(cell) for task, cell in view["tasks"].items()}
            of_view = {task: draws[f"{name} {task}"] for task in tasks}
            views[name] = View(name, view["protocol"], tasks, of_view)
        return Evaluation(
            folder,
            content["sha256"],
            entry_from_dict(content["entry"]),
            tuple(Finding(**finding) for finding in content["findings"]),
            views,
            tracks=tuple(content["tracks"]),
            answers={
                key.removeprefix("answers "): values
                for key, values in draws.items()
                if key.startswith("answers ")
            },
        )
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return None  # missing or damaged: compute and replace it


def _task_score(cell: dict[str, Any]) -> TaskScore:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in cell.items()}
    values["pretrainings"] = tuple(tuple(pair) for pair in cell["pretrainings"])
    return TaskScore(**{**values, "interval": Interval(**cell["interval"])})
