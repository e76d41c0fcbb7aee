"""Find which entry leads which, and the interval of each AVG, for all entries of a view.

Three sources of luck are added to what `statistics` draws for each task:

- the seed of the pretraining (`pretraining_sd`), because an entry stands for its recipe;
- failed fine-tunings, as a mixture: a run either learns or scores what the majority answer scores;
- the number of comparisons: ranges of differences hold for all pairs of a board together, by the
  bootstrap of the largest statistic (Westfall & Young 1993; Romano & Wolf 2005).

`benchmarks/board_statistics.py` simulates boards and measures what these ranges promise.

Shapes: E entries, T tasks, R draws.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smallbench.leaderboard.statistics import CONFIDENCE, Floats, Interval

PRETRAINING_SD = 0.4
"""Assumed standard deviation of AVG, in points, between two pretrainings of one recipe. It is
chosen; a board with several pretrainings of a recipe measures it (`pretraining_sd`)."""
PRETRAINING_WEIGHT = 4
"""Weight of this assumption against measured pretrainings, in degrees of freedom."""
JOINT_LEVEL = 0.97
"""Level of the largest statistic for ranges that hold with `CONFIDENCE`. The seeds' variance is
estimated from three to five runs, and with 0.95, 7 to 10 % of boards had a false lead."""
NUM_JOINT_DRAWS = 2_000
"""Draws of the largest statistic, if a board has more than `MANY` entries."""
MANY = 60
CHUNK = 250


class Failures(NamedTuple):
    """Runs of one task that learned nothing."""

    runs: int
    failed: int
    cost: float
    """Points of AVG that are lost if every run fails."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Values of one entry that the ranking needs."""

    score: float
    """The published AVG, failed runs included."""
    draws: Floats
    """Draws of AVG over the runs that learned, without the pretraining's seed."""
    failures: tuple[Failures, ...] = ()
    """Of each task, in the order of the protocol."""
    pretrainings: tuple[float, ...] = ()
    """AVG of each pretraining, if the score is the mean of several; an entry has one."""
    deviation: float = PRETRAINING_SD
    """Standard deviation of AVG between pretrainings of one recipe: the board's."""

    @property
    def pretraining_sd(self) -> float:
        """Standard error of AVG by the choice of its pretraining seeds."""
        if len(self.pretrainings) < 2:
            return self.deviation
        one = pretraining_sd([self.pretrainings], self.deviation)
        return one / math.sqrt(len(self.pretrainings))

    @cached_property
    def recipe_draws(self) -> Floats:
        """[R] draws including the pretraining's seed."""
        seed = hashlib.sha256(np.ascontiguousarray(self.draws).tobytes()).digest()
        rng = np.random.default_rng(list(seed))
        moves: Floats = self.pretraining_sd * rng.standard_normal(len(self.draws))
        return self.draws + moves


def pretraining_sd(recipes: Iterable[Sequence[float]], assumed: float = PRETRAINING_SD) -> float:
    """Return the standard deviation of AVG between pretrainings of one recipe.

    The AVGs of each recipe's pretrainings gradually replace the assumed deviation.
    """
    degrees, squares = PRETRAINING_WEIGHT, PRETRAINING_WEIGHT * assumed**2
    for scores in recipes:
        degrees += max(0, len(scores) - 1)
        squares += len(scores) * float(np.var(scores)) if scores else 0.0
    return float(np.sqrt(squares / degrees))


# ---- the interval of one entry


def failure_rates(entries: Sequence[Scored], num_draws: int) -> Floats:
    """Return [R] draws of the probability that a run fails, one rate for all entries and tasks.

    The mid-P confidence distribution of a binomial rate: half of the draws count one failure more
    than was seen. Without this, a few runs without a failure would give a probability of 0.
    """
    runs = sum(one.runs for entry in entries for one in entry.failures)
    failed = sum(one.failed for entry in entries for one in entry.failures)
    rng = np.random.default_rng([runs, failed])
    more = rng.integers(0, 2, num_draws)
    if runs == 0:
        return np.zeros(num_draws)
    # Beta(0, ·) is 0 and Beta(·, 0) is 1.
    above, below = failed + more, runs - failed + 1 - more
    rates: Floats = rng.beta(np.maximum(above, 1e-9), np.maximum(below, 1e-9))
    return np.where(above == 0, 0.0, np.where(below == 0, 1.0, rates))


def score_interval(entry: Scored, rates_R: Floats) -> Interval:
    """Return the interval of the expected AVG of the recipe, failed runs included.

    It always contains the published AVG. If an unusual number of failures puts that outside, the
    other end alone carries the whole error probability.
    """
    draws = entry.recipe_draws - sum(one.cost for one in entry.failures) * rates_R
    error = 100 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [error / 2, 100 - error / 2])
    if entry.score > high:
        return Interval(float(np.percentile(draws, error)), entry.score)
    if entry.score < low:
        return Interval(entry.score, float(np.percentile(draws, 100 - error)))
    return Interval(float(low), float(high))


# ---- differences


@dataclass(frozen=True, eq=False)
class Differences:
    """Every entry against every other."""

    difference: Floats
    """Row's AVG minus column's."""
    half_width: Floats
    """The simultaneous ranges are `difference` ± this."""

    @property
    def leads(self) -> NDArray[np.bool_]:
        """Whether the row leads the column: the printed range is above zero."""
        found: NDArray[np.bool_] = self.difference > self.half_width
        return found

    def interval(self, a: int, b: int) -> Interval:
        """The range of a − b."""
        middle, half = float(self.difference[a, b]), float(self.half_width[a, b])
        return Interval(middle - half, middle + half)


def differences(entries: Sequence[Scored]) -> Differences:
    """Return all pairs with ranges that hold together with probability `CONFIDENCE`."""
    num = len(entries)
    scores_E = np.array([entry.score for entry in entries])
    difference_EE = scores_E[:, None] - scores_E[None, :]
    if num < 2:
        return Differences(difference_EE, np.zeros((num, num)))
    draws_ER = np.stack([entry.recipe_draws for entry in entries]).astype(np.float32)
    draws_ER -= draws_ER.mean(axis=1, keepdims=True)
    covariance = np.cov(draws_ER)
    variance = np.diag(covariance)
    learned_EE = np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0)
    quantile = _joint_quantile(draws_ER, learned_EE)
    failures_EE = failure_variance([entry.failures for entry in entries])
    half = quantile * np.sqrt(learned_EE + failures_EE)
    np.fill_diagonal(half, 0.0)
    return Differences(difference_EE, half)


def _joint_quantile(draws_ER: Floats, variance_EE: Floats) -> float:
    if len(draws_ER) > MANY:
        draws_ER = draws_ER[:, :NUM_JOINT_DRAWS]
    with np.errstate(divide="ignore"):
        scale_EE = np.where(variance_EE > 1e-12, 1 / np.sqrt(variance_EE), 0.0).astype(np.float32)
    largest_R = np.zeros(draws_ER.shape[1], dtype=np.float32)
    for start in range(0, len(largest_R), CHUNK):  # so many draws fit into the processor's cache
        draws_EC, largest_C = (part[..., start : start + CHUNK] for part in (draws_ER, largest_R))
        draws_EC = np.ascontiguousarray(draws_EC)
        for a in range(1, len(draws_ER)):
            away = np.abs(draws_EC[:a] - draws_EC[a])
            away *= scale_EE[a, :a, None]
            np.maximum(largest_C, away.max(axis=0), out=largest_C)
    return float(np.quantile(largest_R, JOINT_LEVEL))


def failure_variance(failures: Sequence[Sequence[Failures]]) -> Floats:
    """Return [E, E] the variance of each difference that comes from failed runs.

    `failures` are each entry's, by task. A weak model may fail at RTE and never at SST-2, so the
    probability is the pair's common rate in each task; without runs it is 0.
    """
    total = np.zeros((len(failures), len(failures)))
    for of_task in zip(*failures, strict=True):
        runs_E, failed_E, cost_E = np.array(of_task, np.float64).T
        runs_EE = np.maximum(runs_E[:, None] + runs_E, 1.0)
        rate_EE = (failed_E[:, None] + failed_E) / runs_EE
        spread_E = cost_E**2 / np.maximum(runs_E, 1.0)
        total += (spread_E[:, None] + spread_E) * rate_EE * (1 - rate_EE)
    return total


@dataclass(frozen=True)
class RankRange:
    """Possible ranks of an entry: `2–4`, or a single one if no other entry ties with it."""

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def rank_ranges(leads_EE: NDArray[np.bool_]) -> list[RankRange]:
    """Return for each entry 1 + those that lead it, up to E − those that it leads."""
    ahead, behind = leads_EE.sum(axis=0).tolist(), leads_EE.sum(axis=1).tolist()
    return [RankRange(1 + a, len(leads_EE) - b) for a, b in zip(ahead, behind, strict=True)]
