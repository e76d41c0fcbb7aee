"""The retention of checkpoints; the same rule in a run directory and in a storage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Keep the newest checkpoints, those at an interval, and milestones."""

    keep_last: int = 2
    keep_every_steps: int | None = None
    milestones: tuple[int, ...] = ()

    def retained(self, steps: Iterable[int]) -> set[int]:
        """Return the kept ones of `steps`."""
        known = sorted(steps)
        return set(known[-self.keep_last :]) | {step for step in known if self.is_pinned(step)}

    def is_pinned(self, step: int) -> bool:
        """Return whether a step's checkpoint is kept permanently."""
        at_interval = self.keep_every_steps and step > 0 and step % self.keep_every_steps == 0
        return bool(at_interval) or step in self.milestones
