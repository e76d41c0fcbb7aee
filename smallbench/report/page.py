"""Runs as one self-contained HTML page: nothing is fetched, and nothing needs JavaScript.

A chart's lines are SVG paths that stretch with the page; labels are text of the page, so that they
stay readable at any width. Each chart holds its lines against steps, tokens, hours and FLOPs, of
which the style sheet shows one. JavaScript only adds the values under the pointer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallbench import __version__
from smallbench.config import differing_keys
from smallbench.files import write_text
from smallbench.report.runs import AXES, SCORE, RecordedRun, Series
from smallbench.report.scale import Scale, all_values, scale_of, short, thinned, ticks_of
from smallbench.templates import from_template
from smallbench.tracking.panels import ENTROPY, SECTIONS, Panel

WIDTH, HEIGHT = 2_000, 10_000
"""The grid of whole numbers on which lines are drawn: finer than any screen."""

MAX_DOTS = 60
"""Held-out losses are also dots, while they are few enough to be told apart."""

NUM_COLORS = 8

KINDS = {
    "train": "training",
    "eval": "held-out",
    "entropy": "unigram entropy of held-out tokens",
    "glue": "GLUE",
}
SCORES = Panel("GLUE along the way", (SCORE,), "mean of the tasks × 100")


@dataclass(frozen=True)
class Axis:
    """The x axis of all charts, in one of its units."""

    name: str
    label: str
    scale: Scale
    ticks: list[tuple[str, float]]
    restarts: list[tuple[int, float]]
    """Run and place in percent."""


@dataclass(frozen=True)
class Table:
    """A table that stands above the runs' numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def write_report(runs: Sequence[RecordedRun], out: Path, **purpose: Any) -> None:
    """Write the page to `out`; `purpose` is as in `render_report`."""
    write_text(out, render_report(runs, **purpose))


def render_report(
    runs: Sequence[RecordedRun],
    *,
    title: str = "",
    tables: Sequence[Table] = (),
    sentences: Sequence[str] = (),
) -> str:
    """Return the page of the runs, in the order given.

    `title`, `tables` and `sentences` say what the runs were made for.
    """
    axes = [axis for name in AXES if (axis := _axis(runs, name))]
    sections = {**SECTIONS, "Learning": (SCORES, *SECTIONS["Learning"])}
    return from_template(
        "smallbench.report",
        "page.html",
        runs=runs,
        title=title or ", ".join(run.name for run in runs),
        tables=tables,
        sentences=sentences,
        axes=axes,
        sections={name: list(_charts(runs, axes, panels)) for name, panels in sections.items()},
        kinds=KINDS,
        totals=_totals(runs),
        differences=_differences(runs),
        utc=_utc,
        num_colors=NUM_COLORS,
        width=WIDTH,
        height=HEIGHT,
        version=__version__,
        created=_utc(time.time(), "%Y-%m-%d %H:%M UTC"),
    )


# Charts


def _axis(runs: Sequence[RecordedRun], name: str) -> Axis | None:
    """Return the axis, or None for FLOPs that no run has logged."""
    longest = max(
        run.series(f"{event}/step", name).x[-1:] for run in runs for event in run.by_event
    )
    if name == "flops" and not any(longest):
        return None
    scale = Scale(0.0, (longest[0] if longest else 0.0) or 1.0)
    return Axis(
        name,
        AXES[name],
        scale,
        ticks_of(scale),
        [(i, 100 * scale.place(x)) for i, run in enumerate(runs) for x in run.restarts(name)],
    )


def _charts(
    runs: Sequence[RecordedRun], axes: Sequence[Axis], panels: Sequence[Panel]
) -> Iterator[dict[str, Any]]:
    """Yield what the template draws for each panel with data that no earlier chart shows.

    `kinds` are those of `KINDS` that are there; `summary` is for who cannot see the chart.
    """
    seen: set[tuple[tuple[float | None, ...], ...]] = set()
    for panel in panels:
        found = {
            (index, key): run.series(key, "step")
            for index, run in enumerate(runs)
            for key in panel.keys
        }
        found = {place: series for place, series in found.items() if all_values([series])}
        # The entropy is shown with a loss; it is not a loss.
        measured = [series for (_, key), series in found.items() if key != ENTROPY]
        values = tuple(series.y for series in measured)
        if values in seen or not any(all_values(measured)):  # all zero is in the table
            continue
        seen.add(values)
        shown = {index for index, key in found if key != ENTROPY}
        found = {place: series for place, series in found.items() if place[0] in shown}
        y = scale_of(all_values(list(found.values())), is_log=panel.is_log)
        kinds = {key: "entropy" if key == ENTROPY else key.partition("/")[0] for key in panel.keys}
        yield {
            "title": panel.title,
            "unit": panel.unit,
            "y": y,
            "y_ticks": ticks_of(y),
            "lines": [
                _line(index, kinds[key], axis, y, thinned(runs[index].series(key, axis.name)))
                for index, key in found
                for axis in axes
            ],
            "runs": shown,
            "kinds": [kind for kind in KINDS if kind in {kinds[key] for _, key in found}],
            "summary": "; ".join(
                f"{runs[index].name}, {KINDS[kinds[key]]}: "
                f"{short(all_values([series])[-1])} at the end"
                for (index, key), series in found.items()
            ),
        }


def _line(run: int, kind: str, axis: Axis, y: Scale, series: Series) -> dict[str, Any]:
    """Return one path of a chart; `dots` is the path again as dots, or nothing."""
    parts, pen_is_down = [], False
    points = []
    for x, value in zip(series.x, series.y, strict=True):
        if value is None:
            pen_is_down = False
            continue
        point = f"{axis.scale.place(x) * WIDTH:.0f} {(1 - y.place(value)) * HEIGHT:.0f}"
        parts.append(("L" if pen_is_down else "M") + point)
        points.append(point)
        pen_is_down = True
    dots = kind in {"eval", "glue"} and len(points) <= MAX_DOTS
    drawn = "".join(f"M{point}h0" for point in points) if dots else ""
    return {"run": run, "kind": kind, "axis": axis.name, "path": "".join(parts), "dots": drawn}


# Tables


TOTALS = (
    ("Held-out loss, all terms, last", "held_out_loss", ".4f"),
    ("Held-out loss, all terms, best", "best_held_out_loss", ".4f"),
    ("Unigram entropy of held-out tokens", "unigram_entropy", ".4f"),
    ("Training loss, all terms, last", "loss", ".4f"),
    ("Generator loss, last", "generator_loss", ".4f"),
    ("Discriminator loss, last", "discriminator_loss", ".4f"),
    ("Relation loss, last", "relation_loss", ".4f"),
    ("Steps", "step", ",.0f"),
    ("Skipped steps", "skipped_steps", ",.0f"),
    ("Tokens", "tokens", ",.0f"),
    ("Hours of training", "hours", ",.2f"),
    ("Attempts", "attempts", ",.0f"),
    ("Tokens a second, overall", "overall_tokens_per_second", ",.0f"),
    ("MFU, median", "median_mfu", ".1%"),
    ("FLOPs of training", "train_flops", ".3g"),
    ("GPU-active hours", "gpu_active_hours", ",.2f"),
    ("Energy, kWh", "energy_kwh", ",.3g"),
    ("Energy, how known", "energy_method", ""),
    ("Cost", "cost", ",.2f"),
)


def _totals(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str]]]:
    found = [run.totals() for run in runs]
    return [
        # What was not measured is a dash, never a zero.
        (title, ["–" if t.get(key) is None else format(t[key], style) for t in found])
        for title, key, style in TOTALS
        if any(key in t for t in found)
    ]


def _differences(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str]]]:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    if len(runs) > 1:
        differing = {key for run in runs[1:] for key in differing_keys(runs[0].config, run.config)}
        keys = [key for key in keys if key in differing]
    return [(key, [str(run.config.get(key, "–")) for run in runs]) for key in keys]


def _utc(unix_seconds: float, style: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    return time.strftime(style, time.gmtime(unix_seconds))
