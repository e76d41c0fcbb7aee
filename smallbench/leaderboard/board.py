"""Rank the entries of a board, with ties as ranges, and compare two entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smallbench.glue.protocols import PROTOCOLS
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import Entry, recipe_digest
from smallbench.leaderboard.markdown_table import escape
from smallbench.leaderboard.ranking import (
    PRETRAINING_SD,
    RankRange,
    Scored,
    differences,
    failure_rates,
    failure_variance,
    pretraining_sd,
    rank_ranges,
    score_interval,
)
from smallbench.leaderboard.scores import VIEWS, View, ViewName
from smallbench.leaderboard.statistics import Floats, Interval
from smallbench.leaderboard.text import show
from smallbench.leaderboard.track_table import TRACKS, Track
from smallbench.leaderboard.verdict import Evaluation
from smallbench.templates import from_template

BoardName = str
"""`robust` (the first track), another track's name, or `paper`."""


@dataclass(frozen=True)
class Board(Track):
    """A ranking of the entries that a track admits, or of all; each is a tab of the site."""

    view: ViewName = "robust"
    track: str | None = None
    """The name of its track; None: any entry."""

    @property
    def rule(self) -> str:
        """The limits in a sentence, or what is ranked without limits."""
        best = "best dev score of all trials, and scores reported elsewhere"
        return best if self.track is None else super().rule

    @property
    def columns(self) -> list[str]:
        """Headings of the tasks."""
        return [TASKS[name].column for name in self.tasks]


BOARDS: Mapping[BoardName, Board] = {
    name: Board(**{**vars(track), "name": name}, track=track.name)
    for name, track in zip(("robust", *list(TRACKS)[1:]), TRACKS.values(), strict=True)
} | {"paper": Board("paper", "Best dev scores", "paper.html", "paper", view="paper")}
"""In the order of the tabs."""


@dataclass(frozen=True, eq=False)
class BoardRow:
    """A line of one view."""

    entry: Entry
    evaluation: Evaluation
    view: View | None
    """None for quoted scores."""
    average: float | None
    rank: RankRange | None
    """None for an entry that is not measured, or if tasks are missing."""
    leads: frozenset[str] = frozenset()
    """Slugs of the entries that this one leads."""
    interval: Interval | None = None
    """Of AVG, with the failure rate of all runs in this view."""

    @property
    def scores(self) -> Mapping[str, float]:
        """Task to its score × 100, computed or reported."""
        if self.view is not None:
            return {name: cell.score for name, cell in self.view.tasks.items()}
        assert self.entry.reported is not None
        return self.entry.reported.scores


def board_rows(evaluations: Iterable[Evaluation], name: BoardName) -> list[BoardRow]:
    """Return the rows of a board, best AVG first, those without AVG last.

    Rejected entries and entries that the board's track does not admit are left out. Reported scores
    and references are on the boards of their protocol, ordered by AVG but without a rank: the
    uncertainty of the first is unknown, and the second are not pretrained.
    """
    view, track, protocol = BOARDS[name].view, BOARDS[name].track, BOARDS[name].protocol
    rows = []
    for evaluation in evaluations:
        entry, found = evaluation.entry, evaluation.views.get(view)
        if entry is None or evaluation.rejected:
            continue
        if entry.reported is not None:
            if entry.reported.protocol == protocol:
                rows.append(BoardRow(entry, evaluation, None, entry.reported.average, None))
            continue
        if track is not None and entry.is_measured and track not in evaluation.tracks:
            continue
        if found is not None and found.protocol == protocol:
            rows.append(BoardRow(entry, evaluation, found, found.average, None))
    rows.sort(key=lambda row: (row.average is None, -(row.average or 0.0), row.entry.slug))
    return _ranked(rows)


def _ranked(rows: list[BoardRow]) -> list[BoardRow]:
    """Add ranks, leads and intervals. References change none of them between ranked entries."""
    scored = {place: one for place, row in enumerate(rows) if row.view and (one := row.view.scored)}
    order = sorted(scored, key=lambda place: (not rows[place].entry.is_measured, place))
    num = sum(rows[place].entry.is_measured for place in order)
    measured = [(rows[place].entry, scored[place]) for place in order]
    deviation = _deviation(measured[:num])
    entries = [replace(one, deviation=deviation) for _, one in measured]
    leads, slugs = differences(entries).leads, [rows[place].entry.slug for place in order]
    if num < len(order):
        leads[:num, :num] = differences(entries[:num]).leads
    if not entries:
        return rows
    rates = failure_rates(entries[:num] or entries, len(entries[0].draws))
    ranks = [*rank_ranges(leads[:num, :num]), *[None] * (len(order) - num)]
    for number, (place, one) in enumerate(zip(order, entries, strict=True)):
        own = rates if number < num else failure_rates([one], len(one.draws))
        rows[place] = replace(
            rows[place],
            rank=ranks[number],
            leads=frozenset(slugs[other] for other in np.flatnonzero(leads[number])),
            interval=score_interval(one, own),
        )
    return rows


def _deviation(entries: Iterable[tuple[Entry, Scored]]) -> float:
    """Return the deviation of AVG between pretrainings, as the entries of one recipe show it."""
    recipes: dict[str, list[float]] = {}
    for entry, one in entries:
        recipes.setdefault(recipe_digest(entry), []).append(one.score)
    return pretraining_sd(recipes.values())


def render_board(evaluations: Sequence[Evaluation]) -> str:
    """Return every board as a Markdown table, one after the other."""
    return from_template(
        __package__,
        "boards.md",
        boards=[(tab, board_rows(evaluations, name)) for name, tab in BOARDS.items()],
        protocols=PROTOCOLS,
        rejected=[
            show(evaluation.folder.name) for evaluation in evaluations if evaluation.rejected
        ],
        escape=escape,
    )


# ---- two entries

NORMAL = 1.96
"""Standard errors of a range that holds with 95 %."""


@dataclass(frozen=True)
class Difference:
    """One task, or AVG: a − b, paired over the dev set's examples."""

    name: str
    a: float
    b: float
    interval: Interval
    """Of a − b."""

    @property
    def verdict(self) -> str:
        """Name the entry that leads; neither, unless the interval excludes zero."""
        if self.interval.low > 0:
            return "A leads"
        return "B leads" if self.interval.high < 0 else "tie"


def compare(a: View, b: View, *, deviation: float = PRETRAINING_SD) -> list[Difference]:
    """Compare every task that both entries have, then AVG if both have it.

    The interval of a task holds for that task alone and for these two pretrainings; that of AVG is
    for the two recipes, whose pretrainings deviate by `deviation` points.
    """
    assert (a.name, a.protocol) == (b.name, b.protocol), (
        "entries of different protocols cannot be compared"
    )
    rows = []
    for name in TASKS:
        if name in a.tasks and name in b.tasks:
            half = float(half_widths((a, b), name)[0, 1])
            values = (a.tasks[name].score, b.tasks[name].score)
            middle = values[0] - values[1]
            sure = Interval(middle - half, middle + half)
            rows.append(Difference(TASKS[name].column, *values, sure))
    pair = [view.scored for view in (a, b)]
    if None not in pair:
        scored = [replace(found, deviation=deviation) for found in pair if found is not None]
        sure = differences(scored).interval(0, 1)
        rows.append(Difference("AVG", scored[0].score, scored[1].score, sure))
    return rows


def half_widths(views: Sequence[View], name: str) -> Floats:
    """Return [E, E] half-widths of the intervals of all differences in one task.

    Paired: all entries share the draws of examples. Failed runs count at the pair's common rate.
    """
    draws_ER = np.stack([view.task_draws[name] for view in views])
    draws_ER = draws_ER - draws_ER.mean(axis=1, keepdims=True)
    covariance = draws_ER @ draws_ER.T / draws_ER.shape[1]
    variance = np.diag(covariance)
    learned_EE = np.maximum(variance[:, None] + variance - 2 * covariance, 0.0)
    failures_EE = failure_variance([[view.failures(name)] for view in views])
    half: Floats = NORMAL * np.sqrt(learned_EE + failures_EE)
    return half


def render_comparison(a: Evaluation, b: Evaluation) -> str:
    """Return a table for a terminal for each view that both entries have."""
    lines = [f"A: {show(a.folder.name)}", f"B: {show(b.folder.name)}"]
    for name in VIEWS:
        protocols = {view.protocol for e in (a, b) if (view := e.views.get(name))}
        if name not in a.views or name not in b.views or len(protocols) > 1:
            lines += ["", f"{name}: not in both under one protocol"]
            continue
        pair = [(e.entry, e.views[name].scored) for e in (a, b)]
        deviation = _deviation((e, one) for e, one in pair if e and e.is_measured and one)
        lines += ["", f"{'':<6}{'A':>8}{'B':>8}{'A − B':>8}{'95 % interval':>20}  {name}"]
        for row in compare(a.views[name], b.views[name], deviation=deviation):
            low, high = row.interval.low, row.interval.high
            lines.append(
                f"{row.name:<6}{row.a:>8.2f}{row.b:>8.2f}{row.a - row.b:>+8.2f}"
                f"{f'{low:+.2f} to {high:+.2f}':>20}  {row.verdict}"
            )
    return "\n".join(lines)
