"""Student's t, by laws and against simulations with a fixed seed."""

import numpy as np
import pytest
from scipy import stats

from smallbench.ablation.paired_test import needed_seeds, paired_comparison, power
from smallbench.estimate import estimate


def simulated(count, *, difference=0.0, num_seeds=3, seed=0):
    """Ablations: what a seed has in common with itself is larger than what differs."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        common = generator.normal(5.0, 0.3, num_seeds)
        first, other = common + generator.normal(0, 0.05, (2, num_seeds))
        yield first, other + difference


def share_found(ablations):
    return np.mean([paired_comparison(a, b).p_value < 0.05 for a, b in ablations])


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_without_a_difference_one_in_twenty_of_200_ablations_finds_one(num_seeds):
    assert 0.03 <= share_found(simulated(200, num_seeds=num_seeds)) <= 0.07


@pytest.mark.slow
def test_over_many_simulations_the_rate_is_five_percent():
    assert 0.04 <= share_found(simulated(2_000)) <= 0.06


def test_the_needed_seeds_find_the_difference_in_four_of_five_ablations():
    count = needed_seeds(0.05, 0.05 * 2**0.5)
    assert count == 18
    found = share_found(simulated(1_000, difference=0.05, num_seeds=count))
    assert 0.77 <= found <= 0.84


def test_fewer_seeds_than_needed_have_less_power():
    for effect in (0.1, 0.5, 1.0, 3.0):
        count = needed_seeds(effect, 1.0)
        assert power(effect, count) >= 0.8
        assert count == 2 or power(effect, count - 1) < 0.8
    assert needed_seeds(1e-6, 1.0) is None


def test_the_p_value_is_that_of_the_paired_test_and_fits_the_interval():
    for first, other in simulated(50, difference=0.1):
        found = paired_comparison(first, other)
        assert found.p_value == pytest.approx(stats.ttest_rel(other, first).pvalue)
        covers_zero = found.difference.low <= 0 <= found.difference.high
        assert covers_zero == (found.p_value >= 0.05)


def test_an_interval_covers_the_mean_in_95_of_100():
    generator = np.random.default_rng(0)
    found = [estimate(generator.normal(1, 2, 4)) for _ in range(2_000)]
    assert 0.94 <= np.mean([e.low <= 1 <= e.high for e in found]) <= 0.96


@pytest.mark.parametrize(
    ("first", "other", "reason"),
    [
        ([], [], "no seed has a result of both"),
        ([1.0], [2.0], "one seed shows no spread"),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], "the same in every seed"),
        ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "the same in every seed"),
    ],
)
def test_an_untestable_difference_has_a_reason_and_no_p_value(first, other, reason):
    found = paired_comparison(first, other)
    assert found.p_value is None
    assert found.needed_seeds is None
    assert reason in found.reason


@pytest.mark.parametrize("effect", [0.5, 2.0, 8.0, 100.0])
@pytest.mark.parametrize("count", [2, 3, 20, 500])
def test_power_is_the_share_of_simulated_tests_that_find_it(effect, count):
    drawn = np.random.default_rng(0).normal(effect, 1.0, (4_000, count))
    found = np.mean(stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05)
    assert power(effect, count) == pytest.approx(found, abs=0.025)
