"""Being asked to stop: SIGTERM and Ctrl-C set a flag that the trainer reads between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT sets a flag and the second ends the process.

    Calling it gives the flag. The second signal exits at once with 128 + its number, unsaved.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal_name is not None

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
