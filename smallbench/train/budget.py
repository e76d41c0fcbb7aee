"""The progress of a run, its budget, and the completed part of it.

Learning rate, batch size, masking rate and phase are functions of that part. Seconds and FLOPs are
summed over all restarts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Along = Literal["steps", "hours", "flops"]


@dataclass
class Progress:
    """The progress of a run; every checkpoint has it."""

    step: int = 0
    """Completed optimizer steps, including skipped ones."""
    position: int = 0
    """Position in the source at which the next step's batch begins."""
    batch_fraction: float = 0.0
    """Completed part of the run for which the next step's batch is made, one step early."""
    num_tokens: int = 0
    train_seconds: float = 0.0
    """Seconds spent in steps, without saving and evaluating. Equal in all processes."""
    train_flops: float = 0.0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    """Energy, time and cost, see `pretraining.usage`."""

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """The limits of a run, and the unit of its schedule."""

    max_steps: float = math.inf
    max_seconds: float = math.inf
    max_flops: float = math.inf
    along: Along = "steps"
    """The schedule's unit. Hours: Geiping & Goldstein 2022, "Cramming", §4.3; Izsak et al. 2021,
    "24hBERT"."""

    @property
    def total(self) -> float:
        """The schedule's length in its unit: steps, seconds or FLOPs."""
        return {"steps": self.max_steps, "hours": self.max_seconds, "flops": self.max_flops}[
            self.along
        ]

    def done(self, progress: Progress) -> float:
        """Return the completed part of `total`, in its unit."""
        values = {"hours": progress.train_seconds, "flops": progress.train_flops}
        return values.get(self.along, progress.step)

    def fraction(self, progress: Progress) -> float:
        """Return the completed part of the schedule, 0 to 1."""
        return min(self.done(progress) / self.total, 1.0) if self.total else 1.0

    def is_over(self, progress: Progress) -> bool:
        """Return whether the budget is exhausted."""
        return (
            progress.step >= self.max_steps
            or progress.train_seconds >= self.max_seconds
            or progress.train_flops >= self.max_flops
        )

    def seconds_left(
        self, progress: Progress, *, seconds_per_step: float, flops_per_step: float = 0.0
    ) -> float:
        """Return how long the rest of the run takes at this speed."""
        steps = self.max_steps - progress.step
        if flops_per_step:
            steps = min(steps, (self.max_flops - progress.train_flops) / flops_per_step)
        left = min(steps * seconds_per_step, self.max_seconds - progress.train_seconds)
        return max(left, 0.0)
