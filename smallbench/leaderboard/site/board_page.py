"""Variables of the template of a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smallbench.leaderboard.board import BOARDS, BoardName
from smallbench.leaderboard.entry import TIERS
from smallbench.leaderboard.site.rows import (
    ARCHITECTURES,
    METRICS,
    OBJECTIVES,
    SIZES,
    Row,
)
from smallbench.leaderboard.site.strips import Strips, records

NUM_COMPARED_ROWS = 8
"""Rows of the table by task."""


def board_page(views: Mapping[BoardName, Sequence[Row]], view: BoardName) -> dict[str, Any]:
    """Return the variables of `board.html`."""
    found, tab = views[view], BOARDS[view]
    fallback = [] if found or tab.view != "robust" else views["paper"]
    shown = found or fallback
    note_list = list(dict.fromkeys(note for row in shown for note in row.entry.notes))
    numbers = {note: number for number, note in enumerate(note_list, start=1)}
    tiers = {row.slug: row.tier for rows in views.values() for row in rows}.values()
    places = {row.slug: place for place, row in enumerate(shown)}
    architectures = sorted({row.entry.model.architecture for row in shown})
    objectives = sorted({row.entry.model.objective for row in shown})
    return {
        "tab": tab,
        "tasks": tab.tasks,
        "boards": BOARDS,
        "view": tab.view,
        "rows": found,
        "fallback": fallback,
        "counts": {name: len(of_view) for name, of_view in views.items()},
        "strips": Strips.of(shown),
        "best": {
            name: max((row.cells[name].score for row in shown if name in row.cells), default=None)
            for name in tab.tasks
        },
        "note_list": note_list,
        "notes": {row.slug: [numbers[note] for note in row.entry.notes] for row in shown},
        "tiers": [tier for tier in reversed(TIERS) if any(row.tier == tier for row in shown)],
        "sizes": SIZES,
        "num_measured": sum(tier != "reported" for tier in tiers),
        "num_reported": sum(tier == "reported" for tier in tiers),
        "brackets": {row.bracket: row for row in found[::-1] if row.rank and row.bracket},
        "kinds": {
            "architecture": {name: ARCHITECTURES.get(name, name) for name in architectures},
            "objective": {name: OBJECTIVES.get(name, name) for name in objectives},
        },
        "cards": {row.gpu for row in shown if row.gpu},
        "compared": [row for row in shown if row.cells][:NUM_COMPARED_ROWS],
        "records": records(found),
        "data": {
            "board": tab.name,
            "tasks": [
                {"key": name, "column": task.column, "title": task.title,
                 "metric": METRICS[task.ranking_metric]}
                for name, task in tab.tasks.items()
            ],
            "rows": [
                row.values
                | {
                    "leads": f"{sum(1 << places[slug] for slug in row.leads if slug in places):x}",
                    "command": row.entry.provenance
                    and f"smallbench leaderboard reproduce submissions/{row.slug} --glue=hub",
                    "notes": list(row.entry.notes),
                }
                for row in shown
            ],
        },
    }  # fmt: skip
