"""The leaderboard as Markdown: the paper's rows (*reported*) and local results, side by side.

Local rows are computed from stored runs only. Rows of unofficial data and of generated samples are
listed below all others, whatever their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallbench.glue.protocols import NOTHING, Summary, summarize
from smallbench.glue.results import RunResult, group_runs
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.reported import REPORTED, ReportedRow

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
    num_seeds: tuple[int, ...] = ()
    """The numbers of seeds of the tasks; empty if unknown."""
    notes: tuple[str, ...] = ()


def reported_row(row: ReportedRow) -> TableRow:
    """Return a published row as a line of the table."""
    return TableRow(
        name=row.name,
        kind="reported",
        params_millions=row.params_millions,
        cells={task: TableCell(score) for task, score in row.scores.items()},
        average=row.average,
        notes=row.notes,
    )


def local_rows(runs: Iterable[RunResult]) -> list[TableRow]:
    """Return a row for each model among stored runs.

    Raises `DataError` if runs of one task are not repetitions of each other.
    """
    summaries = [summarize(group) for group in group_runs(runs)]
    return [_local_row(summary) for summary in summaries]


def _local_row(summary: Summary) -> TableRow:
    name = summary.model
    # The directory's path means nothing to a reader; a hub id stays whole.
    if name.startswith(("/", ".", "~")):
        name = Path(name).name or name
    if summary.random_init:
        name += " (random initialisation)"
    notes = []
    if summary.average is None:
        notes.append(
            f"{len(summary.tasks)} of {len(TASKS)} tasks; their mean is "
            f"{summary.mean_of_present:.2f}, which is not an AVG."
        )
    num_failed = sum(task.num_failed for task in summary.tasks.values())
    if num_failed:
        num_runs = sum(task.num_runs for task in summary.tasks.values())
        notes.append(
            f"{num_failed} of {num_runs} runs were no better than the majority class; the "
            "scores include them."
        )
    return TableRow(
        name=name,
        kind="sample" if summary.is_sample else "unofficial" if summary.unofficial else "local",
        params_millions=summary.num_parameters / 1e6,
        cells={task: TableCell(s.score, s.sd) for task, s in summary.tasks.items()},
        average=summary.average,
        num_seeds=tuple(sorted({task.num_runs for task in summary.tasks.values()})),
        notes=(_protocol_note(summary), *notes),
    )


def _protocol_note(summary: Summary) -> str:
    if not summary.departures:
        return f"Protocol {summary.protocol}."
    return f"Unranked, not as {summary.protocol} has it: {'; '.join(summary.departures)}."


def leaderboard_rows(runs: Iterable[RunResult] = ()) -> list[TableRow]:
    """Return the paper's rows and those of stored runs, in the order of the table."""
    return ordered([*map(reported_row, REPORTED), *local_rows(runs)])


def ordered(rows: Iterable[TableRow]) -> list[TableRow]:
    """Sort by AVG, highest first; then incomplete rows, unofficial rows, sample rows."""

    def place(row: TableRow) -> tuple[int, bool, float, str]:
        average = row.average
        last = _LAST.index(row.kind) if row.kind in _LAST else -1
        return last, average is None, -(average or 0.0), row.name

    return sorted(rows, key=place)


def render_markdown(rows: Sequence[TableRow]) -> str:
    """Return a Markdown table with its notes, rows in the order of `ordered`."""
    columns = [task.column for task in TASKS.values()]
    header = ["Model", "Kind", "Params", *columns, "AVG", "Seeds"]
    lines = [markdown_line(header), "|---|---|" + "--:|" * (len(header) - 2)]
    notes: list[str] = []
    for row in ordered(rows):
        marks = []
        for note in row.notes:
            if note not in notes:
                notes.append(note)
            marks.append(str(notes.index(note) + 1))
        lines.append(markdown_line(_row_cells(row, marks)))
    kinds = {row.kind for row in rows}
    lines.append("")
    lines += [f"- *{kind}*: {_EXPLANATIONS[kind]}" for kind in _EXPLANATIONS if kind in kinds]
    if {"reported", "local"} <= kinds:
        lines.append(
            "- Reported and local rows are sorted by AVG; best-of-n and mean-of-seeds scores "
            "are not ranked together."
        )
    if notes:
        lines += ["", *(f"{n}. {escape(note)}" for n, note in enumerate(notes, start=1))]
    return "\n".join(lines) + "\n"


_LAST: tuple[Kind, ...] = ("unofficial", "sample")
"""Kinds that cannot be compared with the others; their rows are listed below them."""

_EXPLANATIONS: dict[Kind, str] = {
    "reported": "as the paper prints it (arXiv 2109.10847); it cannot be recomputed.",
    "local": "mean over seeds ± standard deviation, recomputed from stored runs.",
    "unofficial": "trained or scored on data that are not the official GLUE rows. Not comparable "
    "with the other rows, so it is listed below them.",
    "sample": "scored on generated samples, not on GLUE. Never comparable with the other rows, "
    "so it is listed below them whatever its scores.",
}


def _row_cells(row: TableRow, marks: Sequence[str]) -> list[str]:
    name = escape(row.name) + (f" <sup>{','.join(marks)}</sup>" if marks else "")
    params = NOTHING if row.params_millions is None else f"{row.params_millions:.1f}M"
    seeds = [str(number) for number in row.num_seeds]
    return [
        name,
        f"*{row.kind}*",
        params,
        *(_cell(row.cells.get(task)) for task in TASKS),
        NOTHING if row.average is None else f"{row.average:.2f}",
        "–".join(dict.fromkeys([seeds[0], seeds[-1]])) if seeds else NOTHING,
    ]


def _cell(cell: TableCell | None) -> str:
    if cell is None:
        return NOTHING
    return f"{cell.score:.2f}" + (f" ± {cell.sd:.2f}" if cell.sd is not None else "")


def markdown_line(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Escape text so that it stays in its table cell and is neither HTML nor Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return text
