"""A mean over seeds with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, which needs two values."""

    mean: float
    low: float | None
    high: float | None
    num_values: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of `values` and its 95 % interval by Student's t."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Estimate(mean, None, None, count)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Estimate(mean, mean - half, mean + half, count)
