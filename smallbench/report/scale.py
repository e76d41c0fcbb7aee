"""From numbers to places on a chart: ranges, round ticks, and fewer points that look the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smallbench.report.runs import Series

MAX_TICKS = 6
NUM_BUCKETS = 300
"""Two points in each: about one a pixel of the widest chart."""


@dataclass(frozen=True)
class Scale:
    """A range of values, mapped to 0 … 1."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; what is not positive lies at the bottom of a logarithmic scale."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return 0.0
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round values inside."""
        if not self.is_log:
            return _round_steps(self.low, self.high)
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            ticks = [d * 10.0**e for e in exponents for d in digits]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) >= 3:
                break
        if len(ticks) < 2:  # within so little even this scale looks linear
            return _round_steps(self.low, self.high)
        # Over many decades, only every second, third, … tick.
        return ticks[:: math.ceil(len(ticks) / MAX_TICKS)]


def ticks_of(scale: Scale) -> list[tuple[str, float]]:
    """Return the round values of a scale, labels with their place on the axis in percent."""
    return [(short(value), 100 * scale.place(value)) for value in scale.ticks()]


def scale_of(values: Iterable[float], *, is_log: bool = False) -> Scale:
    """A scale that holds all values, with a little air, from zero where that costs little."""
    found = [value for value in values if not is_log or value > 0]
    low, high = (min(found), max(found)) if found else (1.0, 1.0)
    if is_log:
        return Scale(low / 1.1, high * 1.1, is_log=True)
    air = (high - low or abs(high) or 1.0) * 0.05
    if 0 <= low < 0.5 * high:
        return Scale(0.0, high + air)
    return Scale(low - air, high + air)


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / (MAX_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(series: Series, *, num_buckets: int = NUM_BUCKETS) -> Series:
    """At most two points a bucket of the x axis, its lowest and its highest: no spike is lost.

    A bucket in which nothing was measured keeps a gap.
    """
    if len(series.x) <= 2 * num_buckets:
        return series
    low, high = series.x[0], series.x[-1]
    buckets: dict[int, list[int]] = {}
    for index, x in enumerate(series.x):
        share = (x - low) / (high - low) if high > low else 0.0
        buckets.setdefault(min(int(share * num_buckets), num_buckets - 1), []).append(index)
    kept: list[int] = []
    for members in buckets.values():
        measured = [(y, i) for i in members if (y := series.y[i]) is not None]
        ends = {min(measured)[1], max(measured)[1]} if measured else {members[0]}
        kept += sorted(ends)
    kept = sorted({0, *kept, len(series.x) - 1})
    return Series(tuple(series.x[i] for i in kept), tuple(series.y[i] for i in kept))


def short(value: float | None, *, digits: int = 3) -> str:
    """Return a number as people write it: 2.31, 0.0004, 16.4 M; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit * (1 - 0.5 * 10.0**-digits):
            return f"{_plain(value / unit, digits)} {name}"
    if size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return _plain(value, digits)


def _plain(value: float, digits: int) -> str:
    """Format with these significant digits, without exponent and trailing zeros."""
    before = math.floor(math.log10(abs(value))) + 1
    text = f"{value:.{max(digits - before, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def all_values(many: Sequence[Series]) -> list[float]:
    """Return every measured value of several series."""
    return [y for series in many for y in series.y if y is not None]
