"""What the templates of the two board pages are given."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import LOG_FILE, TIERS, Entry, Tier
from smallbench.leaderboard.scores import ViewName
from smallbench.leaderboard.site import charts
from smallbench.leaderboard.site.environment import environment_of_site
from smallbench.leaderboard.site.rows import METRICS, Row

TIER_MEANINGS: Mapping[Tier, str] = {
    "reported": "quoted from elsewhere; nothing can be recomputed, so it has no rank",
    "claimed": "scores recomputed from predictions; some check could not be done",
    "logged": "and the training log, the compute and the code’s commit were all checked",
    "verified": "and the board’s keepers repeated it",
}
BUDGETS = ((24, "≤ 1 GPU-day"), (96, "≤ 4 GPU-days"), (168, "≤ 1 GPU-week"))
"""Of GPU-hours; four days is what a system of the paper took on a V100."""
SIZES = (15, 30, 60, 120)
"""Millions of parameters."""
CAPTIONS: Mapping[ViewName, str] = {
    "robust": "Entries ranked by protocol robust-v1, best AVG first",
    "paper": "Entries by their best dev scores, best AVG first",
}
NUM_COMPARED_ROWS = 8
"""Rows of the charts by task."""
LARGE = 100
"""Rows above which a browser lays out only those in sight."""


def board_page(views: Mapping[ViewName, list[Row]], view: ViewName) -> dict[str, Any]:
    """Return the variables of `board.html`."""
    found = views[view]
    fallback = [] if found or view != "robust" else views["paper"]
    shown = found or fallback
    note_list = list(dict.fromkeys(note for row in shown for note in row.entry.notes))
    numbers = {note: number for number, note in enumerate(note_list, start=1)}
    strips = charts.Strips.of(shown)
    return {
        "view": view,
        "rows": found,
        "fallback": fallback,
        "counts": {name: len(of_view) for name, of_view in views.items()},
        "strips": strips and _Strips(strips),
        "best": {
            name: max((row.cells[name].score for row in shown if name in row.cells), default=None)
            for name in TASKS
        },
        "note_list": note_list,
        "notes": {row.slug: [numbers[note] for note in row.entry.notes] for row in shown},
        "tiers": [tier for tier in reversed(TIERS) if any(row.tier == tier for row in shown)],
        "tier_meanings": TIER_MEANINGS,
        "large": LARGE,
        "budgets": BUDGETS,
        "sizes": SIZES,
        "captions": CAPTIONS,
        "facts": list(_facts(found, views["paper"])),
        "charts": [chart for key in charts.COSTS if (chart := charts.scatter(shown, key))],
        "by_task": charts.by_task(shown[:NUM_COMPARED_ROWS]),
        "records": charts.records(found),
        "record_chart": charts.record_chart(found),
        "data": {
            "view": view,
            "tasks": [
                {"key": name, "column": task.column, "title": task.title,
                 "metric": METRICS[task.ranking_metric]}
                for name, task in TASKS.items()
            ],
            "rows": [
                row.as_dict()
                | {
                    "leads": _bits(other.slug in row.leads for other in shown),
                    "command": command_of(row.entry),
                    "notes": list(row.entry.notes),
                    "has_curve": (row.evaluation.folder / LOG_FILE).is_file(),
                }
                for row in shown
            ],
        },
    }  # fmt: skip


def _bits(flags: Iterable[bool]) -> str:
    """Flags as a hexadecimal number, the first its lowest bit: a quarter of a character each."""
    return f"{sum(1 << index for index, flag in enumerate(flags) if flag):x}"


class _Strips:
    """A view's strips, as the template draws them."""

    def __init__(self, strips: charts.Strips) -> None:
        self._strips = strips
        self._macro = environment_of_site().get_template("macros.html").module.interval_svg  # type: ignore[attr-defined]

    def draw(self, row: Row) -> Any:
        """The AVG of a row with its interval, over the leader's."""
        assert row.average is not None
        scale, leader = self._strips.scale, self._strips.leader
        line, dots = charts.strip([row.average], row.interval, scale)
        lead = leader and (
            f"{100 * scale.place(leader.low):.1f}",
            f"{100 * (scale.place(leader.high) - scale.place(leader.low)):.1f}",
        )
        return self._macro(line, dots, lead, row.interval is None)


Fact = tuple[str, tuple[str, str], str]
"""Name, value with its link, and a remark."""


def _facts(ranked: Sequence[Row], paper: Sequence[Row]) -> Iterator[Fact]:
    """What a visitor wants to know first."""
    leading = [row for row in ranked if row.rank and row.rank.best == 1]
    if leading:
        first = leading[0]
        tied = f", tied with {len(leading) - 1} more" if len(leading) > 1 else ""
        yield "Best AVG", (f"{first.average:.2f}", href(first)), f"{first.entry.name}{tied}"
        cheap = min(leading, key=lambda row: row.usage.hours or 0.0)
        yield (
            "Cheapest in first place",
            (f"{cheap.usage.hours:,.1f} GPU-h", href(cheap)),
            cheap.entry.name,
        )
    elif paper and paper[0].average is not None:
        # A reference of which only AVG is known is none to beat.
        best = next((row for row in paper if row.cells and row.average is not None), paper[0])
        yield "Best so far, unranked", (f"{best.average:.2f}", href(best)), _remark(best)
    num_measured = sum(row.tier != "reported" for row in paper)
    num_reported = len(paper) - num_measured
    yield "Entries", (str(len(paper)), ""), f"{num_measured} measured, {num_reported} reported"


def _remark(row: Row) -> str:
    return f"{row.entry.name}, {row.entry.model.num_parameters / 1e6:.1f}M parameters, {row.tier}"


def href(row: Row) -> str:
    """Return the address of an entry's page, from the board."""
    return f"entries/{row.slug}/index.html"


def command_of(entry: Entry) -> str | None:
    """Return the command that repeats the pretraining."""
    return None if entry.provenance is None else shlex.join(entry.provenance.command)
