"""Requests to stop, and the time that is left to save.

One `Stop` is passed down through every long operation, which asks it between two complete pieces of
work, so that everything stored stays usable.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from smallbench.errors import InterruptedRunError, SmallbenchError

DEFAULT_GRACE_SECONDS = 60.0
"""Time before the wall-clock limit at which a run is asked to save, if no grace period is set."""


class Stop:
    """A request to stop that may come at any time. Without arguments it never comes."""

    def __init__(
        self,
        ask: Callable[[], bool] = lambda: False,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._ask, self._seconds_left = ask, seconds_left

    def asked(self) -> bool:
        """Return whether to stop now."""
        return self._ask()

    def seconds_left(self) -> float:
        """Return the seconds until the process must have ended; infinity without a limit."""
        return self._seconds_left()

    def raise_if_asked(
        self, doing: str, error: type[SmallbenchError] = InterruptedRunError
    ) -> None:
        """Raise `error` if asked to stop; `doing` names the work that the same command resumes."""
        if self.asked():
            raise error(f"stopped while {doing}; run the same command again")

    def or_if(self, *asks: Callable[[], bool]) -> Stop:
        """Return a stop that is also asked for when one of `asks` returns True."""
        return Stop(lambda: self.asked() or any(ask() for ask in asks), self.seconds_left)


NEVER = Stop()
"""The default of every function that takes a `Stop`."""


class SignalStop(Stop):
    """A context in which SIGTERM, SIGINT or an approaching deadline asks to stop.

    The deadline is `max_seconds` from now; the request comes `grace_seconds` before it (60 s if no
    grace is set). A second signal ends the process at once with 128 + its number, unsaved.

    Jobs enter it. After the first signal, pretraining ends the step or, between micro-batches,
    undoes it. It then saves a checkpoint, waits for its upload (`pretraining.saving`) and ends with
    exit code 75 (`pretraining.pretrain`); with 143 if the grace period is too short for that, with
    1 if this attempt has done no step, and with 0 if the step was the run's last. The next start,
    with the same command, loads the newest intact checkpoint (`pretraining.run_storage`) and
    computes what an uninterrupted run would have.
    """

    def __init__(self, *, max_seconds: float = math.inf, grace_seconds: float = math.inf) -> None:
        self.signal_name: str | None = None
        self._grace_seconds = grace_seconds
        self._deadline = time.monotonic() + max_seconds
        early = DEFAULT_GRACE_SECONDS if math.isinf(grace_seconds) else grace_seconds
        self._early_seconds = min(early, max_seconds / 2)
        self._asked_at = math.inf
        self._previous: dict[signal.Signals, object] = {}

    def asked(self) -> bool:
        """Return whether a signal came, or the deadline is closer than the grace period."""
        if math.isinf(self._asked_at):
            if time.monotonic() < self._deadline - self._early_seconds:
                return False
            self._asked_at = time.monotonic()
        return True

    def seconds_left(self) -> float:
        """Return what is left of the grace period or until the deadline, whichever is shorter."""
        now = time.monotonic()
        begin = now if math.isinf(self._asked_at) else self._asked_at
        return min(begin + self._grace_seconds, self._deadline) - now

    def __enter__(self) -> SignalStop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name
        self._asked_at = min(self._asked_at, time.monotonic())
