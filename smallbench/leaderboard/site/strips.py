"""Intervals drawn inside table cells, and records over time.

`static/charts.js` draws charts; for readers without scripts, the pages have plain tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smallbench.leaderboard.site.rows import Row
from smallbench.leaderboard.statistics import Interval
from smallbench.report.scale import Scale

WORST_SHOWN = 8.0
"""Points of AVG below the best at which the strips end."""


@dataclass(frozen=True)
class Strips:
    """The scale of all AVG cells of a view, and the leader's interval on it."""

    scale: Scale
    leader: Interval | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Strips | None:
        """Return the strips; None if no row has an AVG."""
        averages = [row.average for row in rows if row.average is not None]
        if not averages:
            return None
        ends = [e for row in rows if row.interval for e in (row.interval.low, row.interval.high)]
        shown = [v for v in (*averages, *ends) if v > max(averages) - WORST_SHOWN]
        low, high = min(shown), max(shown)
        air = max(high - low, 1.0) * 0.06
        leader = next((row.interval for row in rows if row.interval), None)
        return cls(Scale(low - air, high + air), leader)

    def draw(self, row: Row) -> tuple[str, str, tuple[str, str] | None, bool]:
        """Return the arguments of the templates' `interval_svg`."""
        assert row.average is not None
        line, dots = strip([row.average], row.interval, self.scale)
        if self.leader is None:
            return line, dots, None, row.interval is None
        low, high = (100 * self.scale.place(end) for end in (self.leader.low, self.leader.high))
        return line, dots, (f"{low:.1f}", f"{high - low:.1f}"), row.interval is None


def strip(values: Iterable[float], interval: Interval | None, scale: Scale) -> tuple[str, str]:
    """Return the paths of an interval and of dots on a line of length 100."""

    def at(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, scale.place(value))):.1f}"

    line = f"M{at(interval.low)} 5H{at(interval.high)}" if interval else ""
    return line, "".join(f"M{at(value)} 5h0" for value in values)


def records(rows: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Return the entries that set a record, oldest first, each with its gain over the last one."""
    found: list[tuple[Row, float | None]] = []
    best: float | None = None
    for row in sorted(rows, key=lambda row: (row.entry.date, -(row.average or 0.0), row.slug)):
        if row.average is not None and row.rank and (best is None or row.average > best):
            found.append((row, None if best is None else row.average - best))
            best = row.average
    return found
