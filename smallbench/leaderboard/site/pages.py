"""Variables of the templates of a board and of an entry, and the files beside an entry's page."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from smallbench.config import flatten
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.board import BOARDS, BoardName
from smallbench.leaderboard.entry import PLUGINS_FOLDER, PREDICTIONS_FOLDER, TIERS, Entry
from smallbench.leaderboard.folder import MAX_BYTES, list_files, read_bytes
from smallbench.leaderboard.predictions import MAX_PREDICTIONS_BYTES
from smallbench.leaderboard.reproduce import commands_of
from smallbench.leaderboard.scores import ViewName
from smallbench.leaderboard.site.rows import (
    ARCHITECTURES,
    METRICS,
    OBJECTIVES,
    SIZES,
    Row,
    Strips,
    records,
    strip,
)
from smallbench.leaderboard.verdict import Evaluation
from smallbench.report.scale import Scale

NUM_COMPARED_ROWS = 8
"""Rows of the table by task."""


def board_page(views: Mapping[BoardName, Sequence[Row]], view: BoardName) -> dict[str, Any]:
    """Return the variables of `board.html`."""
    found, tab = views[view], BOARDS[view]
    tasks = {name: TASKS[name] for name in tab.tasks}
    fallback = [] if found or tab.view != "robust" else views["paper"]
    shown = found or fallback
    ranked = [row for row in found if row.rank]
    note_list = list(dict.fromkeys(note for row in shown for note in row.entry.notes))
    numbers = {note: number for number, note in enumerate(note_list, start=1)}
    tiers = {row.slug: row.tier for rows in views.values() for row in rows}.values()
    places = {row.slug: place for place, row in enumerate(shown)}
    architectures = sorted({row.entry.model.architecture for row in shown})
    objectives = sorted({row.entry.model.objective for row in shown})
    return {
        "tab": tab,
        "tasks": tasks,
        "boards": BOARDS,
        "view": tab.view,
        "rows": found,
        "fallback": fallback,
        "counts": {name: len(of_view) for name, of_view in views.items()},
        "strips": Strips.of(shown),
        "best": {
            name: max((row.cells[name].score for row in ranked if name in row.cells), default=None)
            for name in tasks
        },
        "note_list": note_list,
        "notes": {row.slug: [numbers[note] for note in row.entry.notes] for row in shown},
        "tiers": [tier for tier in reversed(TIERS) if any(row.tier == tier for row in shown)],
        "sizes": SIZES,
        "num_measured": sum(tier not in ("reported", "reference") for tier in tiers),
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
                for name, task in tasks.items()
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


NUM_LOSSES = 10
"""Rows of the table of losses for readers without scripts."""


def downloads_of(evaluation: Evaluation) -> dict[str, Callable[[], bytes]]:
    """Return the files beside an entry's page, by name, as functions that read them."""
    folder, names = evaluation.folder, list_files(evaluation.folder)
    found: dict[str, Callable[[], bytes]] = {
        name: partial(read_bytes, folder / name, limit)
        for name, limit in MAX_BYTES.items()
        if name in names
    }
    for part in (PREDICTIONS_FOLDER, PLUGINS_FOLDER):
        if packed := sorted(name for name in names if name.startswith(f"{part}/")):
            found[f"{part}.zip"] = partial(_archive, folder, packed)
    return found


def _archive(folder: Path, names: Sequence[str]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            # Without a timestamp, so that equal entries give equal bytes.
            content = read_bytes(folder / name, MAX_PREDICTIONS_BYTES)
            opened.writestr(zipfile.ZipInfo(name), content)
    return archive.getvalue()


def entry_page(
    found: Mapping[BoardName, Row],
    views: Mapping[BoardName, Sequence[Row]],
    downloads: Mapping[str, int],
) -> dict[str, Any]:
    """Return the variables of `entry.html`; `downloads` has the sizes of the files beside it."""
    row = next(iter(found.values()))  # the entry's own board first
    entry, evaluation = row.entry, row.evaluation
    points, findings = evaluation.curve, evaluation.findings
    counts = {v: sum(f.verdict == v for f in findings) for v in ("passed", "flagged", "not done")}
    tables: dict[ViewName, Row] = {}
    for name, one in found.items():  # several tracks may have the same scores
        tables.setdefault(BOARDS[name].view, one)
    return {
        "entry": entry,
        "row": row,
        "found": [
            (BOARDS[name], one, sum(other.rank is not None for other in views[name]))
            for name, one in found.items()
        ],
        "views": [(name, one, _strips(one)) for name, one in tables.items()],
        "losses": points[:: max(1, len(points) // NUM_LOSSES)],
        "curve_data": {"name": entry.name, "points": points},
        "command": _command_of(entry),
        "config": _config(entry),
        "findings": findings,
        "check_summary": ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n),
        "downloads": downloads,
        "num_answers": len(evaluation.evidence.digests) if evaluation.evidence else 0,
        "sha256": evaluation.sha256,
    }


def _strips(row: Row) -> dict[str, tuple[str, str]]:
    # All tasks share one scale, in points from their score, so a wide interval means uncertainty.
    details = {name: cell.details for name, cell in row.cells.items() if cell.details}
    away = [
        abs(value - task.score)
        for task in details.values()
        for value in (task.interval.low, task.interval.high, *task.runs)
    ]
    width = max(away, default=1.0) * 1.05
    return {
        name: strip(task.runs, task.interval, Scale(task.score - width, task.score + width))
        for name, task in details.items()
    }


def _command_of(entry: Entry) -> str | None:
    """Return the commands that repeat the entry, made from its configuration alone.

    The submitter's own command is not shown, since it may not match the configuration.
    """
    if entry.provenance is None:
        return None
    run_dir = f"runs/{entry.slug}"
    commands = commands_of(entry, run_dir=run_dir, results=f"results/{entry.slug}")
    return "\n".join(map(shlex.join, commands))


def _config(entry: Entry) -> list[tuple[str, str]]:
    if entry.provenance is None:
        return []
    flat = flatten(entry.provenance.config)
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in flat.items()]
