"""Being asked to stop: by a signal, or by a deadline. The trainer asks between micro-batches."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

DEADLINE_SECONDS = 60.0
"""How long before a deadline a run is asked to save, where no grace says it."""


def any_of(*asks: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any of them says yes."""
    return lambda: any(ask() for ask in asks)


class StopRequest:
    """A context in which the first SIGTERM or SIGINT sets a flag and the second ends the process.

    Calling it gives the flag, which is also set when `max_seconds` will have passed in
    `grace_seconds` (where there is no such limit, in a minute). From then on `seconds_left` counts
    down. The second signal exits at once with 128 + its number, unsaved.
    """

    def __init__(self, *, max_seconds: float = math.inf, grace_seconds: float = math.inf) -> None:
        self.signal_name: str | None = None
        self._grace_seconds = grace_seconds
        self._deadline = time.monotonic() + max_seconds
        early = DEADLINE_SECONDS if math.isinf(grace_seconds) else grace_seconds
        self._early_seconds = min(early, max_seconds / 2)
        self._asked_at = math.inf
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        """Whether a signal came, or the deadline is as near as the grace is long."""
        if math.isinf(self._asked_at):
            if time.monotonic() < self._deadline - self._early_seconds:
                return False
            self._asked_at = time.monotonic()
        return True

    def seconds_left(self) -> float:
        """Of the grace and until the deadline, whichever is shorter."""
        now = time.monotonic()
        begin = now if math.isinf(self._asked_at) else self._asked_at
        return min(begin + self._grace_seconds, self._deadline) - now

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name
        self._asked_at = min(self._asked_at, time.monotonic())
