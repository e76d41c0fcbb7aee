"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations


def linear_decay(step: int, *, num_steps: int, num_warmup_steps: int) -> float:
    """The factor on the peak learning rate for optimizer step `step`, counted from 0.

    Rises linearly to 1 over the warm-up, then falls linearly; the step after the last would get 0
    (a budget's learning rate must decay fully: No Train No Gain, Kaddour et al. 2023, §4).
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup_steps))
