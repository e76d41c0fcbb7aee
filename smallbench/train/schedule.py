"""Schedules: pure functions of what is done, in steps, seconds or parts of the run."""

from __future__ import annotations


def linear_decay(done: float, *, total: float, warmup: float) -> float:
    """The factor on the peak learning rate for the step before which `done` steps were done.

    Rises linearly to 1 over the warm-up, then falls linearly; the step after the last would get 0
    (a budget's learning rate must decay fully: No Train No Gain, Kaddour et al. 2023, §4). All may
    be seconds as well.
    """
    if done < warmup:
        return (done + 1) / (warmup + 1)
    return max(0.0, (total - done) / (total - warmup)) if total > warmup else 0.0


def ramped_batch_size(
    fraction: float, *, first: int, last: int, until: float, multiple: int
) -> int:
    """Sequences of a global batch: linear from `first` to `last` over the part `until` of the run.

    Rounded down to a multiple of `multiple` (Geiping & Goldstein 2022, "Cramming", §4.3).
    """
    if fraction >= until:
        return last
    size = first + (last - first) * fraction / until
    return max(multiple, int(size) // multiple * multiple)
