"""Charts drawn at build time, for who has no JavaScript; with it, `charts.js` draws livelier ones.

As in a run's report, lines are SVG paths that stretch with the page and labels are text of the
page. A dot is a line of no length with round ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from smallbench.glue.tasks import Task
from smallbench.leaderboard.site.rows import Row, Usage
from smallbench.leaderboard.statistics import Interval
from smallbench.report.runs import Series
from smallbench.report.scale import Scale, Tick, scale_of, thinned, ticks_of

SIZE = 2_000
"""The grid of whole numbers on which lines are drawn: finer than a screen."""

NUM_CURVE_BUCKETS = 120
WORST_SHOWN = 8.0
"""Points of AVG below the best: what is further behind lies at the edge of the strips."""


@dataclass(frozen=True)
class Chart:
    """What the template draws: paths by the name of their look."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    paths: list[tuple[str, str]]
    summary: str
    """For who cannot see it."""


COSTS: Mapping[str, tuple[str, str]] = {
    "gpu_hours": ("GPU-hours", "hours on one GPU"),
    "usd": ("Cost", "US dollars"),
    "kwh": ("Energy", "kWh"),
    "parameters": ("Parameters", "parameters"),
}
"""What a score is shown against: a key of `Row.as_dict` to its name and its axis."""


def cost(row: Row, key: str) -> float | None:
    """What an entry took, by a key of `COSTS`."""
    usage: Usage = row.usage
    return {
        "gpu_hours": usage.hours,
        "usd": usage.usd,
        "kwh": usage.kwh,
        "parameters": float(row.entry.model.num_parameters),
    }[key]


def scatter(rows: Sequence[Row], key: str) -> Chart | None:
    """AVG against what it took, with the Pareto front; None where nobody says what it took."""
    points = [
        (found, row.average, row)
        for row in rows
        if row.average is not None and (found := cost(row, key))
    ]
    if not points:
        return None
    name, label = COSTS[key]
    x, y = scale_of([p[0] for p in points], is_log=True), scale_of([p[1] for p in points])
    front = pareto([(a, b) for a, b, _ in points])
    best = max(points, key=lambda point: point[1])
    return _chart(
        f"Score against {name if name.startswith('GPU') else name.lower()}",
        (label, "AVG"),
        (x, y),
        [("front", _steps(front, x, y)), ("dots", _dots([p[:2] for p in points], x, y))],
        f"{len(points)} entries; the best, {best[2].entry.name}, has AVG {best[1]:.2f}; "
        f"{len(front)} are on the Pareto front",
    )


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nobody beats with as little: cheapest first, each better than the one before."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def records(rows: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Entries that were the best when they came, oldest first, each with its gain over the last."""
    found: list[tuple[Row, float | None]] = []
    best: float | None = None
    for row in sorted(rows, key=lambda row: (row.entry.date, -(row.average or 0.0), row.slug)):
        if row.average is not None and row.rank and (best is None or row.average > best):
            found.append((row, None if best is None else row.average - best))
            best = row.average
    return found


def record_chart(rows: Sequence[Row]) -> Chart | None:
    """The best AVG from the first ranked entry's day to the last one's; None within one day."""
    days = [_day(row) for row in rows if row.rank]
    if len(set(days)) < 2:
        return None
    points = [(_day(row), row.average or 0.0) for row, _ in records(rows)]
    x, y = scale_of(days), scale_of([average for _, average in points])
    steps = _steps([*points, (max(days), points[-1][1])], x, y)
    ends = [
        Tick(date.fromordinal(day).isoformat(), 100 * x.place(day))
        for day in (min(days), max(days))
    ]
    summary = f"{len(points)} in turn, from {points[0][1]:.2f} to {points[-1][1]:.2f}"
    paths = [("line", steps), ("dots", _dots(points, x, y))]
    return Chart("The best AVG", "date", "AVG", ends, ticks_of(y), paths, summary)


def _day(row: Row) -> int:
    return date.fromisoformat(row.entry.date).toordinal()


def curve_points(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Tokens and loss of a training log, as many points as a screen shows.

    The loss of masked tokens, or the total where there is none.
    """
    key = "mlm_loss" if log and log[-1]["mlm_loss"] is not None else "loss"
    series = Series(tuple(line["tokens"] for line in log), tuple(line[key] for line in log))
    kept = thinned(series, num_buckets=NUM_CURVE_BUCKETS)
    pairs = zip(kept.x, kept.y, strict=True)
    return [(round(x), round(y, 4)) for x, y in pairs if y is not None]


def loss_curve(points: Sequence[tuple[float, float]]) -> Chart | None:
    """A pretraining's loss against tokens."""
    if len(points) < 2:
        return None
    x, y = Scale(0.0, points[-1][0]), scale_of([value for _, value in points])
    return _chart(
        "Pretraining loss",
        ("tokens", "loss"),
        (x, y),
        [("line", "M" + "L".join(_place(point, x, y) for point in points))],
        f"from {points[0][1]:.2f} to {points[-1][1]:.2f}",
    )


def by_task(
    rows: Sequence[Row], tasks: Mapping[str, Task]
) -> list[tuple[Task, list[tuple[Row, str, str]]]]:
    """Each task's scores of a few rows side by side: paths of intervals and dots on one scale."""
    found = []
    for name, task in tasks.items():
        cells = [(row, row.cells[name]) for row in rows if name in row.cells]
        if not cells:
            continue
        ends = [
            value
            for _, cell in cells
            for value in ((cell.interval.low, cell.interval.high) if cell.interval else ())
        ]
        scale = scale_of([*ends, *(cell.score for _, cell in cells)])
        drawn = [(row, *strip([cell.score], cell.interval, scale)) for row, cell in cells]
        found.append((task, drawn))
    return found


@dataclass(frozen=True)
class Strips:
    """The scale that all AVG cells of a view share, and the leader's interval on it."""

    scale: Scale
    leader: Interval | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Strips | None:
        """None where no row has an AVG."""
        averages = [row.average for row in rows if row.average is not None]
        if not averages:
            return None
        ends = [e for row in rows if row.interval for e in (row.interval.low, row.interval.high)]
        shown = [v for v in (*averages, *ends) if v > max(averages) - WORST_SHOWN]
        low, high = min(shown), max(shown)
        air = max(high - low, 1.0) * 0.06
        leader = next((row.interval for row in rows if row.interval), None)
        return cls(Scale(low - air, high + air), leader)


def strip(values: Iterable[float], interval: Interval | None, scale: Scale) -> tuple[str, str]:
    """Paths of an interval and of dots on a line of 100."""

    def at(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, scale.place(value))):.1f}"

    line = f"M{at(interval.low)} 5H{at(interval.high)}" if interval else ""
    return line, "".join(f"M{at(value)} 5h0" for value in values)


# ---- paths


def _chart(
    title: str,
    labels: tuple[str, str],
    scales: tuple[Scale, Scale],
    paths: list[tuple[str, str]],
    summary: str,
) -> Chart:
    x, y = scales
    return Chart(title, *labels, ticks_of(x), ticks_of(y), paths, summary)


def _place(point: tuple[float, float], x: Scale, y: Scale) -> str:
    return f"{x.place(point[0]) * SIZE:.0f} {(1 - y.place(point[1])) * SIZE:.0f}"


def _dots(points: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    return "".join(f"M{_place(point, x, y)}h0" for point in points)


def _steps(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Level until the next, then up."""
    if len(points) < 2:
        return ""
    path = f"M{_place(points[0], x, y)}"
    for point in points[1:]:
        right, up = _place(point, x, y).split()
        path += f"H{right}V{up}"
    return path
