"""Entries in order: ranks with ties as ranges, one view at a time, and two entries side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smallbench.glue.protocols import NOTHING
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.evaluation import Evaluation
from smallbench.leaderboard.scores import ROBUST, VIEWS, View, ViewName
from smallbench.leaderboard.statistics import (
    LEAD,
    Interval,
    RankRange,
    interval,
    leads,
    probability_better,
    rank_ranges,
)
from smallbench.leaderboard.table import escape, markdown_line


@dataclass(frozen=True, eq=False)
class BoardRow:
    """A line of one view."""

    entry: Entry
    evaluation: Evaluation
    view: View | None
    """None for a reported entry."""
    average: float | None
    rank: RankRange | None
    """None where there is nothing to rank: a reported entry, or tasks missing."""
    leads: frozenset[str] = frozenset()
    """Slugs of the entries over which its lead counts."""


def board(evaluations: Iterable[Evaluation], view: ViewName) -> list[BoardRow]:
    """The rows of a view, best AVG first, those without AVG last; rejected entries are left out.

    Reported entries are best dev scores: they stand in the paper's view, by their AVG and unranked,
    since nothing says how sure they are.
    """
    rows = []
    for evaluation in evaluations:
        entry, found = evaluation.entry, evaluation.views.get(view)
        if entry is None or evaluation.rejected:
            continue
        if entry.reported is not None and view == "paper":
            rows.append(BoardRow(entry, evaluation, None, entry.reported.average, None))
        elif found is not None:
            rows.append(BoardRow(entry, evaluation, found, found.average, None))
    rows.sort(key=lambda row: (row.average is None, -(row.average or 0.0), row.entry.slug))
    draws = {
        row.entry.slug: row.view.draws for row in rows if row.view and row.view.draws is not None
    }
    if not draws:
        return rows
    leading = leads(np.stack(list(draws.values())))
    slugs = np.array(list(draws))
    places = {
        slug: (rank, frozenset(slugs[over].tolist()))
        for slug, rank, over in zip(slugs.tolist(), rank_ranges(leading), leading, strict=True)
    }
    return [
        replace(row, rank=places[row.entry.slug][0], leads=places[row.entry.slug][1])
        if row.entry.slug in places
        else row
        for row in rows
    ]


HEADINGS: dict[ViewName, str] = {
    "robust": f"{ROBUST.name}: {ROBUST.score_is}",
    "paper": "paper: best dev score of all trials, which dev itself chose; never ranked with the "
    "robust view",
}


def render_board(evaluations: Sequence[Evaluation]) -> str:
    """Both views as Markdown tables, one after the other."""
    parts = []
    for name in VIEWS:
        columns = [task.column for task in TASKS.values()]
        header = ["Rank", "Model", "Tier", "Params", *columns, "AVG", "95 % interval"]
        parts += [f"## {HEADINGS[name]}", "", markdown_line(header)]
        parts.append("|--:|---|---|" + "--:|" * (len(header) - 3))
        parts += [markdown_line(_cells(row)) for row in board(evaluations, name)]
        parts.append("")
    rejected = [evaluation.folder.name for evaluation in evaluations if evaluation.rejected]
    if rejected:
        parts += [f"Rejected, so not shown: {', '.join(map(escape, rejected))}", ""]
    return "\n".join(parts)


def _cells(row: BoardRow) -> list[str]:
    if row.view is not None:
        scores = {name: cell.score for name, cell in row.view.tasks.items()}
        sure = row.view.interval
    else:
        assert row.entry.reported is not None
        scores, sure = dict(row.entry.reported.scores), None
    return [
        str(row.rank or NOTHING),
        escape(row.entry.name),
        f"*{row.evaluation.tier}*",
        f"{row.entry.model.num_parameters / 1e6:.1f}M",
        *(_number(scores.get(name)) for name in TASKS),
        _number(row.average),
        NOTHING if sure is None else f"{sure.low:.2f} to {sure.high:.2f}",
    ]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


# ---- two entries


@dataclass(frozen=True)
class Difference:
    """One task, or AVG: a − b, paired over the dev set's examples."""

    name: str
    a: float
    b: float
    interval: Interval
    """Of a − b."""
    probability: float
    """P(a − b > 0)."""

    @property
    def verdict(self) -> str:
        """Who leads, where the lead counts."""
        if self.probability >= LEAD:
            return "A leads"
        return "B leads" if self.probability <= 1 - LEAD else "tie"


def compare(a: View, b: View) -> list[Difference]:
    """Every task that both have, then AVG where both have it."""
    assert a.name == b.name, "views are never mixed"
    rows = []
    for name in TASKS:
        if name in a.tasks and name in b.tasks:
            x, y = a.task_draws[name], b.task_draws[name]
            values = (a.tasks[name].score, b.tasks[name].score)
            rows.append(
                Difference(TASKS[name].column, *values, interval(x - y), probability_better(x, y))
            )
    if a.draws is not None and b.draws is not None:
        assert a.average is not None
        assert b.average is not None
        sure, better = interval(a.draws - b.draws), probability_better(a.draws, b.draws)
        rows.append(Difference("AVG", a.average, b.average, sure, better))
    return rows


def render_comparison(a: Evaluation, b: Evaluation) -> str:
    """Each view that both have, as a table for a terminal."""
    lines = [f"A: {a.folder.name}", f"B: {b.folder.name}"]
    for name in VIEWS:
        if name not in a.views or name not in b.views:
            lines += ["", f"{name}: not in both"]
            continue
        lines += ["", f"{'':<6}{'A':>8}{'B':>8}{'A − B':>8}{'95 % interval':>20}{'P(A > B)':>10}  "]
        lines[-1] += name
        for row in compare(a.views[name], b.views[name]):
            low, high = row.interval.low, row.interval.high
            lines.append(
                f"{row.name:<6}{row.a:>8.2f}{row.b:>8.2f}{row.a - row.b:>+8.2f}"
                f"{f'{low:+.2f} to {high:+.2f}':>20}{row.probability:>10.3f}  {row.verdict}"
            )
    return "\n".join(lines)
