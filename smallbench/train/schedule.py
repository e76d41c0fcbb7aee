"""Schedules: pure functions of the completed part of a run.

A row of `SCHEDULES` is a function `(fraction, config)`: the multiplier on the peak learning rate
after `fraction` of the run that follows the warm-up, 1 at 0. All share one linear warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from smallbench.train import SCHEDULES
from smallbench.train.config import ConstantSchedule, CosineSchedule, ScheduleConfig


def linear(fraction: float, config: ScheduleConfig) -> float:
    """Fall to zero in a straight line."""
    return 1 - fraction


def cosine(fraction: float, config: CosineSchedule) -> float:
    """Fall along half a cosine to `final_rate` (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * fraction)) / 2


def constant(fraction: float, config: ConstantSchedule) -> float:
    """Stay at the peak, then fall to zero over the last `decay_fraction` as 1 - sqrt.

    "WSD", warm-up, stable, decay; the shape is the best of Hägele et al. 2024, arXiv 2405.18392.
    """
    begin = 1 - config.decay_fraction
    if fraction <= begin:
        return 1.0
    return 1 - math.sqrt((fraction - begin) / config.decay_fraction)


def rate_factor(
    done: float, *, total: float, warmup: float, decay: Callable[[float], float]
) -> float:
    """Return the multiplier on the peak learning rate of the step after `done`.

    It rises linearly to 1 over the warm-up, then follows `decay(fraction of the rest)`. All
    arguments have one unit: steps, seconds or FLOPs.
    """
    if done < warmup:
        return (done + 1) / (warmup + 1)
    return max(decay(min((done - warmup) / (total - warmup), 1.0)), 0.0) if total > warmup else 0.0


def linear_decay(done: float, *, total: float, warmup: float) -> float:
    """Return `rate_factor` of the linear schedule; the step after the last would get 0.

    A budget's learning rate must decay fully: No Train No Gain, Kaddour et al. 2023, §4.
    """
    return rate_factor(done, total=total, warmup=warmup, decay=lambda fraction: 1 - fraction)


def schedule_of(config: ScheduleConfig) -> Callable[[float], float]:
    """Return the configured schedule as a function of the fraction after the warm-up."""
    schedule: Callable[[float, ScheduleConfig], float] = SCHEDULES[config.schedule]
    return lambda fraction: schedule(fraction, config)


def ramped_batch_size(
    fraction: float, *, first: int, last: int, until: float, multiple: int
) -> int:
    """Return the sequences of a global batch: linear from `first` to `last` over the part `until`.

    Rounded down to a multiple of `multiple` (Geiping & Goldstein 2022, "Cramming", §4.3).
    """
    if fraction >= until:
        return last
    size = first + (last - first) * fraction / until
    return max(multiple, int(size) // multiple * multiple)
