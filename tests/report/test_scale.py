"""Fewer points look the same, ticks are round, and numbers are short."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbench.report.runs import Series
from smallbench.report.scale import scale_of, short, thinned

FINITE = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


def test_a_million_steps_are_few_points_and_no_spike_is_lost():
    x = tuple(float(50 * i) for i in range(20_000))
    y = tuple(math.sin(i / 3_000) for i in range(20_000))
    y = (*y[:7_777], 99.0, *y[7_778:12_345], -99.0, *y[12_346:])
    few = thinned(Series(x, y))
    assert len(few.x) <= 602
    assert {99.0, -99.0} <= set(few.y)
    assert (few.x[0], few.x[-1]) == (x[0], x[-1])
    assert list(few.x) == sorted(few.x)
    assert set(zip(few.x, few.y, strict=True)) <= set(zip(x, y, strict=True))


def test_a_stretch_without_numbers_stays_a_gap():
    y = [None if 5_000 <= i < 6_000 else 1.0 for i in range(20_000)]
    few = thinned(Series(tuple(map(float, range(20_000))), tuple(y)))
    inside = [y for x, y in zip(few.x, few.y, strict=True) if 5_100 < x < 5_900]
    assert inside
    assert set(inside) == {None}


def test_short_series_are_not_thinned():
    series = Series((1.0, 2.0, 3.0), (1.0, None, 3.0))
    assert thinned(series) is series


@given(st.lists(FINITE, min_size=1), st.booleans())
def test_every_value_lies_on_its_scale_between_round_ticks(values, is_log):
    if is_log:
        values = [abs(value) + 1e-9 for value in values]
    scale = scale_of(values, is_log=is_log)
    assert all(-1e-9 <= scale.place(value) <= 1 + 1e-9 for value in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 8
    assert all(-1e-6 <= scale.place(tick) <= 1 + 1e-6 for tick in ticks)


def test_nonpositive_values_are_at_the_bottom_of_a_logarithmic_scale():
    scale = scale_of([0.0, 1.0, 100.0], is_log=True)
    assert scale.place(0.0) == 0.0
    assert 0 < scale.place(1.0) < scale.place(100.0) < 1


def test_a_scale_begins_at_zero_if_that_costs_little():
    assert scale_of([1.0, 10.0]).low == 0
    assert scale_of([9.0, 10.0]).low > 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0"), (2.314, "2.31"), (0.0004, "0.0004"), (5e-6, "5e-6"), (1000, "1 k"),
        (999.9, "1 k"), (16_384_000, "16.4 M"), (-0.04, "-0.04"), (7.0, "7"), (120, "120"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(value, text):
    assert short(value) == text
