"""Paired differences over seeds, with Student's t. Numbers in, numbers out.

Runs of one seed share the order of the data and the masks, so variants are compared seed by seed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from smallbench.estimate import Estimate, estimate

SIGNIFICANCE = 0.05
POWER = 0.80
MAX_NEEDED_SEEDS = 10_000
NUM_QUANTILES = 1_000


@dataclass(frozen=True)
class Comparison:
    """The paired difference of a variant to the first one."""

    difference: Estimate | None
    p_value: float | None
    """Of the two-sided paired t-test."""
    needed_seeds: int | None
    """Seeds with which a difference of this size and spread is found with a power of 80 %."""
    reason: str = ""
    """Why there is no p-value; empty if there is one."""


def paired_comparison(first: Sequence[float], other: Sequence[float]) -> Comparison:
    """Compare `other` to `first`; equal positions are runs of one seed.

    The p-value, the interval and the needed seeds come from the differences alone.
    """
    differences = np.asarray(other, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if not len(differences):
        return Comparison(None, None, None, "no seed has a result of both variants")
    found = estimate(differences.tolist())
    if len(differences) < 2:
        return Comparison(found, None, None, "one seed shows no spread; give at least two")
    sd = float(np.std(differences, ddof=1))
    size = max(float(np.abs(first).max()), float(np.abs(other).max()))
    if sd <= 1e-12 * size:  # rounding alone
        return Comparison(found, None, None, "the difference is the same in every seed")
    p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Comparison(found, p_value, needed_seeds(found.mean, sd))


def power(effect: float, num_seeds: int) -> float:
    """Return how often the paired t-test at 5 % finds a difference of `effect` sd."""
    bounds, shift = _bounds(num_seeds), abs(effect) * math.sqrt(num_seeds)
    return float((special.ndtr(shift - bounds) + special.ndtr(-shift - bounds)).mean())


@lru_cache(maxsize=1024)
def _bounds(num_seeds: int) -> NDArray[np.float64]:
    """Return what the mean must exceed in standard errors, for quantiles of the sample's sd.

    The noncentral t as a mean over them: SciPy's own is not a number far out.
    """
    freedom = num_seeds - 1
    quantiles = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    sd = np.sqrt(2 * special.gammaincinv(freedom / 2, quantiles) / freedom)
    return np.asarray(special.stdtrit(freedom, 1 - SIGNIFICANCE / 2) * sd)


def needed_seeds(difference: float, sd: float) -> int | None:
    """Return the seeds that find `difference` at 5 % with a power of 80 %.

    `sd` is that of the paired differences. None if it takes more than `MAX_NEEDED_SEEDS`.
    """
    effect = abs(difference) / sd
    if power(effect, MAX_NEEDED_SEEDS) < POWER:
        return None
    seeds = range(2, MAX_NEEDED_SEEDS)  # power grows with them
    return 2 + bisect_left(seeds, POWER, key=lambda num_seeds: power(effect, num_seeds))
