"""Leads agree with the printed ranges and hold for a whole board, with failed runs too."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.board_statistics import Setting, measure
from smallbench.leaderboard.ranking import (
    PRETRAINING_SD,
    Failures,
    RankRange,
    Scored,
    differences,
    failure_rates,
    failure_variance,
    pretraining_sd,
    rank_ranges,
    score_interval,
)


def entry(score, rng, **more):
    return Scored(score=score, draws=score + rng.normal(0, 0.3, 4000), **more)


def test_a_lead_is_a_range_above_zero():
    rng = np.random.default_rng(1)
    found = differences([entry(score, rng) for score in (81.0, 80.0, 79.0, 75.0)])
    for a in range(4):
        for b in range(4):
            low = found.interval(a, b).low
            assert found.leads[a, b] == (a != b and low > 0)
    assert found.leads[:3, 3].all()
    assert not found.leads[0, 1]
    assert np.allclose(found.difference, -found.difference.T)


def test_one_entry_leads_nobody_and_a_copy_never_leads():
    rng = np.random.default_rng(2)
    one = entry(80.0, rng)
    assert not differences([one]).leads.any()
    assert differences([]).leads.shape == (0, 0)
    assert not differences([one, one]).leads.any()


def test_ranges_grow_with_the_number_of_entries():
    rng = np.random.default_rng(3)
    entries = [entry(80.0, rng) for _ in range(80)]  # more than are drawn in full
    few, many = differences(entries[:2]), differences(entries)
    assert many.half_width[0, 1] > 1.5 * few.half_width[0, 1]


def test_several_pretrainings_replace_the_allowance_step_by_step():
    rng = np.random.default_rng(4)
    one = entry(80.0, rng)
    assert one.pretraining_sd == PRETRAINING_SD
    several = [entry(80.0, rng, pretrainings=(80.0,) * num) for num in (2, 4, 9)]
    sds = [found.pretraining_sd for found in several]
    assert PRETRAINING_SD > sds[0] > sds[1] > sds[2]
    apart = entry(80.0, rng, pretrainings=(78.0, 82.0))
    assert apart.pretraining_sd > PRETRAINING_SD


def test_several_entries_of_a_recipe_measure_the_deviation_of_all():
    assert pretraining_sd([[80.0], [70.0]]) == PRETRAINING_SD
    assert pretraining_sd([[80.0, 80.0], [70.0, 70.0]]) < PRETRAINING_SD
    assert pretraining_sd([[50.0, 60.0]] * 100) == pytest.approx(50**0.5, rel=0.03)
    rng = np.random.default_rng(8)
    one, other = entry(52.0, rng), entry(47.0, rng)
    assert differences([one, other]).leads[0, 1]
    deviation = pretraining_sd([[one.score, other.score]])
    assert not differences([replace(e, deviation=deviation) for e in (one, other)]).leads.any()


def test_no_failure_among_few_runs_does_not_mean_that_none_can_happen():
    rng = np.random.default_rng(5)
    clean = [entry(80.0, rng, failures=(Failures(36, 0, 40.0),)) for _ in range(60)]
    alone = score_interval(clean[0], failure_rates(clean[:1], 4000))
    among = score_interval(clean[0], failure_rates(clean, 4000))
    assert alone.low < 78 < 79 < among.low
    assert alone.high == pytest.approx(among.high, abs=0.3)


@pytest.mark.parametrize("num_failed", [0, 1, 5, 36])
def test_an_interval_holds_the_published_score(num_failed):
    rng = np.random.default_rng(6)
    rows = [entry(80.0, rng, failures=(Failures(36, n, 40.0),)) for n in (0, num_failed)]
    published = [80.0, 80.0 - 40.0 * num_failed / 36]
    for row, score in zip(rows, published, strict=True):
        row = Scored(**{**vars(row), "score": score})
        sure = score_interval(row, failure_rates(rows, 4000))
        assert sure.low <= score <= sure.high


def test_a_failed_run_widens_the_ranges_of_its_entry_and_of_no_other():
    rng = np.random.default_rng(7)
    rows = [entry(80.0, rng, failures=(Failures(36, n, 40.0),)) for n in (0, 0, 2)]
    half = differences(rows).half_width
    assert half[0, 2] > 2 * half[0, 1]


def test_failures_of_one_task_widen_no_difference_in_another():
    rng = np.random.default_rng(8)
    weak = entry(50.0, rng, failures=(Failures(3, 3, 1.0), Failures(3, 0, 10.0)))
    good = entry(60.0, rng, failures=(Failures(3, 0, 2.0), Failures(3, 0, 16.0)))
    # Half of the runs of the first task fail, and none of the second.
    of_pair = failure_variance([weak.failures, good.failures])[0, 1]
    assert of_pair == pytest.approx(0.25 * (1.0**2 + 2.0**2) / 3)


def test_ties_come_out_as_ranges():
    leads = np.zeros((4, 4), dtype=bool)
    leads[:3, 3] = True
    assert rank_ranges(leads) == [RankRange(1, 3)] * 3 + [RankRange(4, 4)]
    assert rank_ranges(np.empty((0, 0), dtype=bool)) == []
    # A tie with each neighbour, but not from end to end: ranges overlap.
    chain = np.zeros((3, 3), dtype=bool)
    chain[0, 2] = True
    assert [str(r) for r in rank_ranges(chain)] == ["1–2", "1–3", "2–3"]


def test_simulated_boards_keep_the_promise():
    """A few boards of three; `benchmarks/board_statistics.py` has the table."""
    outcomes = dict(measure(Setting(3, 5, 0.05), boards=40, examples=200))
    assert outcomes["after"]["false board"] <= 0.15 < outcomes["before"]["false board"]
    assert outcomes["after"]["interval"] >= 0.9
