"""How long a run trains, in steps or in hours, and what part of that is behind it.

Everything that changes while a run goes on (learning rate, batch size, masking rate) is a function
of that part. Hours count the seconds in steps alone, over all restarts; every checkpoint has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The end of a run, and what its schedule runs along."""

    max_steps: float = math.inf
    max_seconds: float = math.inf
    along_hours: bool = False
    """The schedule runs along the seconds (Geiping & Goldstein 2022, "Cramming", §4.3; Izsak et al.
    2021, "24hBERT") instead of the steps."""

    def fraction(self, step: int, seconds: float) -> float:
        """The part of the schedule, 0 to 1, that `step` steps and `seconds` seconds make up."""
        done, total = (seconds, self.max_seconds) if self.along_hours else (step, self.max_steps)
        return min(done / total, 1.0) if total else 1.0

    def is_over(self, step: int, seconds: float) -> bool:
        """Whether nothing may follow."""
        return step >= self.max_steps or seconds >= self.max_seconds

    def seconds_left(self, step: int, seconds: float, *, seconds_per_step: float) -> float:
        """How long the rest will take at this speed."""
        by_steps = (self.max_steps - step) * seconds_per_step
        return max(min(by_steps, self.max_seconds - seconds), 0.0)
