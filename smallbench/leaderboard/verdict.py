"""The verdict on an entry's folder: findings, tier and scores, and their report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.copies import Evidence
from smallbench.leaderboard.entry import Entry, Tier
from smallbench.leaderboard.finding import Finding
from smallbench.leaderboard.scores import View, ViewName
from smallbench.leaderboard.text import show

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
    evidence: Evidence | None = field(default=None, repr=False)
    """What is compared with other entries; None if the entry could not be read."""
    curve: Sequence[tuple[int, float]] = field(default=(), repr=False)
    """Tokens and loss of the training log, as many points as a screen shows."""

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
        if self.is_verified:
            return "verified"
        if not self.entry.is_measured:
            return self.entry.tier
        open_questions = any(finding.verdict == "not done" for finding in self.findings)
        return "claimed" if open_questions else self.entry.tier


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
        "findings": [vars(finding) for finding in evaluation.findings],
        "views": {
            view.name: {
                "protocol": view.protocol,
                "average": view.average,
                "interval": view.interval and vars(view.interval),
                "tasks": {name: cell.as_dict() for name, cell in view.tasks.items()},
            }
            for view in evaluation.views.values()
        },
    }
