"""Which checkpoints of a run stay; the same rule in a run directory and in a storage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest ones, those at an interval, and milestones."""

    keep_last: int = 2
    keep_every_steps: int | None = None
    milestones: tuple[int, ...] = ()

    def retained(self, steps: Iterable[int]) -> set[int]:
        """Those of `steps` that stay."""
        known = sorted(steps)
        return set(known[-self.keep_last :]) | {step for step in known if self.is_for_ever(step)}

    def is_for_ever(self, step: int) -> bool:
        """Whether a step's checkpoint stays however many come after it."""
        at_interval = self.keep_every_steps and step > 0 and step % self.keep_every_steps == 0
        return bool(at_interval) or step in self.milestones
