"""The leaderboard as Markdown: the paper's rows (*reported*) and local results, side by side.

Local rows are computed from stored runs only. Rows of unofficial data and of generated samples are
listed below all others, whatever their scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

from smallbench.glue.protocols import Summary, summarize
from smallbench.glue.results import RunResult, group_runs
from smallbench.glue.tasks import TASKS
from smallbench.templates import from_template

Kind = Literal["reported", "local", "unofficial", "sample"]


@dataclass(frozen=True)
class TableCell:
    """One score × 100, with its standard deviation over seeds if there are several."""

    score: float
    sd: float | None = None


@dataclass(frozen=True)
class TableRow:
    """One line of the table."""

    name: str
    kind: Kind
    params_millions: float | None
    cells: dict[str, TableCell]
    """Task name to cell; absent tasks show as a dash."""
    average: float | None
    """None unless all eight tasks have scores."""
    num_seeds: Sequence[int] = ()
    """The numbers of seeds of the tasks; empty if unknown."""
    notes: Sequence[str] = ()


_ROWS = json.loads(package_files(__package__).joinpath("reported.json").read_text(encoding="utf-8"))
REPORTED = tuple(
    TableRow(
        name=row["name"],
        kind="reported",
        params_millions=row["params_millions"],
        cells={task: TableCell(score) for task, score in row["scores"].items()},
        average=row["average"],
        notes=row["notes"],
    )
    for row in _ROWS
)
"""The rows of the paper's table, in its order. A reference has an AVG only.

Source: Kanakarajan, Kundumani, Sankarasubbu 2021, *Small-Bench NLP*, arXiv 2109.10847: dev scores
as its leaderboard prints them. They cannot be recomputed: no predictions were published. The
parameters are from the names of the first two rows and from the descriptions of the models.
"""


def local_rows(runs: Iterable[RunResult]) -> list[TableRow]:
    """Return a row for each model among stored runs.

    Raises `DataError` if runs of one task are not repetitions of each other.
    """
    return [_local_row(summarize(group)) for group in group_runs(runs)]


def _local_row(summary: Summary) -> TableRow:
    name = summary.model
    # The directory's path means nothing to a reader; a hub id stays whole.
    if name.startswith(("/", ".", "~")):
        name = Path(name).name or name
    if summary.random_init:
        name += " (random initialisation)"
    return TableRow(
        name=name,
        kind="sample" if summary.is_sample else "unofficial" if summary.unofficial else "local",
        params_millions=summary.num_parameters / 1e6,
        cells={task: TableCell(s.score, s.sd) for task, s in summary.tasks.items()},
        average=summary.average,
        num_seeds=sorted({task.num_runs for task in summary.tasks.values()}),
        notes=list(_notes(summary)),
    )


def _notes(summary: Summary) -> Iterator[str]:
    if summary.departures:
        yield f"Unranked, not as {summary.protocol} has it: {'; '.join(summary.departures)}."
    else:
        yield f"Protocol {summary.protocol}."
    if summary.average is None:
        yield (
            f"{len(summary.tasks)} of {len(TASKS)} tasks; their mean is "
            f"{summary.mean_of_present:.2f}, which is not an AVG."
        )
    num_failed = sum(task.num_failed for task in summary.tasks.values())
    if num_failed:
        num_runs = sum(task.num_runs for task in summary.tasks.values())
        yield (
            f"{num_failed} of {num_runs} runs were no better than the majority class; the "
            "scores include them."
        )


def leaderboard_rows(runs: Iterable[RunResult] = ()) -> list[TableRow]:
    """Return the paper's rows and those of stored runs, in the order of the table."""
    return ordered([*REPORTED, *local_rows(runs)])


def ordered(rows: Iterable[TableRow]) -> list[TableRow]:
    """Sort by AVG, highest first; then incomplete rows, unofficial rows, sample rows."""

    def place(row: TableRow) -> tuple[int, bool, float, str]:
        last = {"unofficial": 1, "sample": 2}.get(row.kind, 0)
        return last, row.average is None, -(row.average or 0.0), row.name

    return sorted(rows, key=place)


def render_markdown(rows: Sequence[TableRow]) -> str:
    """Return a Markdown table with its notes, rows in the order of `ordered`."""
    rows = ordered(rows)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    return from_template(
        __package__, "table.md", rows=rows, notes=notes, tasks=TASKS, escape=escape
    )


def escape(text: str) -> str:
    """Escape text so that it stays in its table cell and is neither HTML nor Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return text
