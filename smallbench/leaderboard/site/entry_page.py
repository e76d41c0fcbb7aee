"""Variables of the template of an entry's page, and the files beside it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smallbench.config import flatten
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.board import BOARDS, BoardName
from smallbench.leaderboard.entry import (
    ENTRY_FILE,
    LOG_FILE,
    PREDICTIONS_FOLDER,
    RUNS_FILE,
    Entry,
)
from smallbench.leaderboard.folder import MAX_BYTES, list_files, read_bytes
from smallbench.leaderboard.predictions import MAX_PREDICTIONS_BYTES
from smallbench.leaderboard.scores import ViewName
from smallbench.leaderboard.site.board_page import command_of
from smallbench.leaderboard.site.environment import compact
from smallbench.leaderboard.site.rows import METRICS, Cell, Row
from smallbench.leaderboard.site.strips import strip
from smallbench.leaderboard.verdict import Evaluation
from smallbench.report.scale import Scale

ARCHIVE = f"{PREDICTIONS_FOLDER}.zip"
NUM_LOSSES = 10
"""Rows of the table of losses for readers without scripts."""


WHATS = {
    ENTRY_FILE: "authors, model, pretraining, fine-tuning",
    RUNS_FILE: "one line per fine-tuning run",
    LOG_FILE: "records of the pretraining",
    ARCHIVE: "{} files of answers on dev",
}
"""File beside an entry's page to its content."""


def downloads_of(evaluation: Evaluation) -> dict[str, Callable[[], bytes]]:
    """Return the files beside an entry's page, by name, as functions that read them."""
    folder, names = evaluation.folder, list_files(evaluation.folder)
    found: dict[str, Callable[[], bytes]] = {
        name: partial(read_bytes, folder / name, MAX_BYTES[name]) for name in WHATS if name in names
    }
    predictions = sorted(name for name in names if name.startswith(f"{PREDICTIONS_FOLDER}/"))
    if predictions:
        found[ARCHIVE] = partial(_archive, folder, predictions)
    return found


def _archive(folder: Path, names: Sequence[str]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            # Without a timestamp, so that equal entries give equal bytes.
            content = read_bytes(folder / name, MAX_PREDICTIONS_BYTES)
            opened.writestr(zipfile.ZipInfo(name), content)
    return archive.getvalue()


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):,.1f} kB"


def entry_page(
    found: Mapping[BoardName, Row],
    views: Mapping[BoardName, Sequence[Row]],
    downloads: Mapping[str, int],
) -> dict[str, Any]:
    """Return the variables of `entry.html`; `downloads` has the sizes of the files beside it."""
    view, row = next(iter(found.items()))  # the entry's own board first
    entry, evaluation = row.entry, row.evaluation
    points = evaluation.curve
    num_answers = len(evaluation.evidence.trailers) if evaluation.evidence else 0
    findings = evaluation.findings
    counts = {v: sum(f.verdict == v for f in findings) for v in ("passed", "flagged", "not done")}
    return {
        "entry": entry,
        "tier": row.tier,
        "kind": row.kind,
        "home": BOARDS[view],
        "links": row.links,
        "figures": list(_figures(found, views)),
        "views": [_view_table(name, one) for name, one in _tables(found).items()],
        "losses": points[:: max(1, len(points) // NUM_LOSSES)],
        "curve_data": {"name": entry.name, "points": points},
        "command": command_of(entry),
        "config": _config(entry),
        "gpu": row.gpu,
        "findings": findings,
        "check_summary": ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n),
        "downloads": [
            (name, WHATS[name].format(num_answers), _bytes(size))
            for name, size in downloads.items()
        ],
        "sha256": evaluation.sha256,
    }


def _tables(found: Mapping[BoardName, Row]) -> dict[ViewName, Row]:
    """Return one row of each view; several tracks may have the same scores."""
    tables: dict[ViewName, Row] = {}
    for name, row in found.items():
        tables.setdefault(BOARDS[name].view, row)
    return tables


def _figures(
    found: Mapping[BoardName, Row], views: Mapping[BoardName, Sequence[Row]]
) -> Iterator[tuple[str, str, str]]:
    for view, row in found.items():
        tab = BOARDS[view]
        if row.average is None:
            continue
        if tab.view == "robust" and view != next(iter(found)):
            continue
        remark = "as reported, not ranked"
        if row.interval is not None:
            remark = f"{row.interval.low:.2f} to {row.interval.high:.2f}"
        is_best = tab.view == "paper" and len(found) > 1
        name = "AVG, best of trials" if is_best else "AVG"
        yield name, f"{row.average:.2f}", remark
        if row.rank is not None and tab.view == "robust":
            ranked = sum(other.rank is not None for other in views[view])
            yield "Rank", str(row.rank), f"of {ranked}"
    row = next(iter(found.values()))
    usage, model = row.usage, row.entry.model
    inner = model.num_parameters_without_embeddings
    remark = f"{inner / 1e6:.1f}M without embeddings" if inner else ""
    yield "Parameters", f"{model.num_parameters / 1e6:.1f}M", remark
    if usage.hours is not None and usage.tokens is not None:
        yield "Hours", f"{usage.hours:,.1f}", f"{compact(usage.tokens)} tokens"
    if usage.usd is not None:
        yield "Cost", f"${usage.usd:,.2f}", "of the machine’s time"
    if usage.kwh is not None:
        carbon = "" if usage.kg_co2 is None else f"{usage.kg_co2:,.1f} kg CO₂"
        yield "Energy", f"{usage.kwh:,.1f} kWh", carbon


@dataclass(frozen=True)
class TaskLine:
    """A task in an entry's table."""

    task: Any
    cell: Cell
    strip: tuple[str, str]
    further: list[tuple[str, float]]


def _view_table(view: ViewName, row: Row) -> dict[str, Any]:
    # All tasks share one scale, in points from their score, so a wide interval means uncertainty.
    away = [
        abs(value - cell.score)
        for cell in row.cells.values()
        if cell.details
        for value in (cell.details.interval.low, cell.details.interval.high, *cell.details.runs)
    ]
    width = max(away, default=1.0) * 1.05
    lines = []
    for name, cell in row.cells.items():
        task, details = TASKS[name], cell.details
        scale = Scale(cell.score - width, cell.score + width)
        drawn = strip(details.runs, details.interval, scale) if details else ("", "")
        further = [
            (_metric_name(key), value)
            for key, value in (details.metrics if details else {}).items()
            if key != task.ranking_metric
        ]
        lines.append(TaskLine(task, cell, drawn, further))
    title = "Best dev scores"
    if view == "robust" and row.view is not None:
        title = f"Protocol {row.view.protocol}"
    notes = {"robust": "mean over seeds", "paper": "best of the trials"}
    measured = row.entry.reported is None
    return {
        "name": view,
        "title": title,
        "note": notes[view] if measured else f"as reported: {row.entry.reported.source}",  # type: ignore[union-attr]
        "measured": measured,
        "lines": lines,
        "average": row.average,
        "interval": row.interval,
    }


def _metric_name(key: str) -> str:
    metric, _, split = key.partition(" ")
    return f"{METRICS[metric]} {split.removeprefix('dev_')}".strip()


def _config(entry: Entry) -> list[tuple[str, str]]:
    if entry.provenance is None:
        return []
    flat = flatten(entry.provenance.config)
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in flat.items()]
