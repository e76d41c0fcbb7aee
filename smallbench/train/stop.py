"""Being asked to stop: by a signal, or by a deadline. The trainer asks between micro-batches."""

from __future__ import annotations

import math
import os
import signal
import time
from types import FrameType, TracebackType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT sets a flag and the second ends the process.

    Calling it gives the flag, which is also set when `max_seconds` will have passed in
    `grace_seconds`. From then on `seconds_left` counts the grace down. The second signal exits at
    once with 128 + its number, unsaved.
    """

    def __init__(self, *, max_seconds: float = math.inf, grace_seconds: float = math.inf) -> None:
        self.signal_name: str | None = None
        self._grace_seconds = grace_seconds
        self._deadline = time.monotonic() + max_seconds
        self._asked_at = math.inf
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        """Whether a signal came, or the deadline is as near as the grace is long."""
        if math.isinf(self._asked_at):
            begin = self._deadline - (0 if math.isinf(self._grace_seconds) else self._grace_seconds)
            if time.monotonic() < begin:
                return False
            self._asked_at = time.monotonic()
        return True

    def seconds_left(self) -> float:
        """Of the grace; all of it before anybody asked."""
        if math.isinf(self._asked_at) or math.isinf(self._grace_seconds):
            return self._grace_seconds
        return self._asked_at + self._grace_seconds - time.monotonic()

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
