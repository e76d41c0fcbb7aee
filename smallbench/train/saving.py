"""Callbacks that keep a run: checkpoints on the disk, and their way to the storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from smallbench.errors import ConflictError, SmallbenchError, UnavailableError, UnsavedError
from smallbench.stop import NEVER, Stop
from smallbench.train.budget import Progress
from smallbench.train.checkpoint import CheckpointStore
from smallbench.train.engine import Engine
from smallbench.train.randomness import random_state
from smallbench.train.sync import Uploader
from smallbench.train.trainer import Callback, StepResult

LAST_SECONDS = 30.0
"""How long to go on storing a finished run after a signal, if no grace period is given."""

EXIT_SECONDS = 1.0
"""Kept of the grace period for the exit itself."""


class SaveCheckpoints(Callback):
    """Commits a checkpoint at an interval of steps and of minutes, at milestones and at the end.

    Minutes are those of `Progress.train_seconds`, which all processes agree on. A save changes
    nothing of what is computed, so the times of saves do not matter for an exact resume.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        *,
        facts: Mapping[str, Any],
        every_steps: int,
        every_minutes: float,
        milestones: Collection[int] = (),
        stateful: Mapping[str, Callback] | None = None,
        before: Callable[[Progress], None] = lambda progress: None,
        after: Callable[[Progress], None] = lambda progress: None,
        uploader: Uploader | None = None,
        stop: Stop = NEVER,
    ) -> None:
        """`facts` is what every manifest says besides, `stateful` the callbacks that have a state.

        `before` and `after` are called around the write, in process 0 only.
        """
        self._store, self._engine, self._facts = store, engine, facts
        self._every_steps, self._every_seconds = every_steps, 60 * every_minutes
        self._milestones, self._stateful = milestones, stateful or {}
        self._before, self._after = before, after
        self._uploader, self._stop = uploader, stop
        self._first_step, self._saved_at = 0, 0.0
        self.seconds = 0.0
        """Running average of what a save takes; 0 before the first."""

    def on_start(self, progress: Progress) -> None:
        """Count minutes from here."""
        self._first_step, self._saved_at = progress.step, progress.train_seconds

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Save if it is time to."""
        if (
            progress.step % self._every_steps == 0
            or progress.step in self._milestones
            or progress.train_seconds - self._saved_at >= self._every_seconds
        ):
            self.save(progress)

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Save; raises `UnsavedError` if a request to stop leaves no time for it."""
        if not is_done and progress.step == self._first_step:
            # A scheduler that starts such a run again and again would get nowhere.
            raise SmallbenchError(
                f"asked to stop at step {progress.step:,}, before this attempt had done a step; "
                "there is nothing new to save"
            )
        left = self._stop.seconds_left()
        if not is_done and left < self.seconds:
            raise UnsavedError(
                f"asked to stop with {max(left, 0):.1f} s left, but a save takes about "
                f"{self.seconds:.1f} s; the same command continues from step "
                f"{max(self._store.steps(), default=0):,}"
            )
        self.save(progress)

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint now, unless this step has one."""
        start, self._saved_at = time.perf_counter(), progress.train_seconds
        # Every process takes part: each may hold a part of the state.
        weights, state = self._engine.weights(), self._engine.state_dict()
        generators = self._engine.processes.gathered(random_state())
        if not self._engine.processes.is_first:
            return
        self._before(progress)
        is_new = progress.step not in self._store.steps()
        checkpoint = self._store.save(
            weights,
            state,
            generators,
            {
                **self._facts,
                "step": progress.step,
                "progress": progress.state_dict(),
                "callbacks": {name: c.state_dict() for name, c in self._stateful.items()},
            },
        )
        self._after(progress)
        if is_new:
            seconds, average = time.perf_counter() - start, self.seconds
            self.seconds = seconds if not average else 0.7 * average + 0.3 * seconds
            if self._uploader:
                self._uploader.submit(checkpoint)


class WaitForUploads(Callback):
    """Ends the run if storing failed, and does not let it end before its checkpoint is stored."""

    def __init__(
        self,
        uploader: Uploader,
        save: Callable[[Progress], None],
        *,
        max_seconds: float,
        stop: Stop = NEVER,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """After the last step, wait up to `max_seconds`; after a request to stop, the grace.

        `beat` is called while it waits.
        """
        self._beat = beat
        self._uploader, self._save = uploader, save
        self._max_seconds, self._stop = max_seconds, stop

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Raise what ended the uploads; save before, unless the run is somebody else's by now."""
        error = self._uploader.failure
        if error is None:
            return
        if not isinstance(error, ConflictError):
            self._save(progress)
        raise error

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Wait for the last upload; raises `UnsavedError` if the time is too short for it."""
        if is_done:
            self._drain()
        elif not self._drain_within(self._stop.seconds_left() - EXIT_SECONDS):
            raise self._uploader.failure or UnsavedError(
                f"asked to stop; step {progress.step:,} is on the local disk, but the time was too "
                "short to store it; the same command continues from there, or from step "
                f"{self._uploader.committed_step:,} on another machine"
            )
        if self._uploader.failure:
            raise self._uploader.failure

    def _drain_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._uploader.drain(min(0.5, end - time.monotonic())):
            self._beat()
            if time.monotonic() >= end:
                return False
        return True

    def _drain(self) -> None:
        """Wait, shorter if asked to stop."""
        end, was_asked = time.monotonic() + self._max_seconds, False
        while not self._drain_within(min(0.5, end - time.monotonic())):
            if not was_asked and self._stop.asked():
                was_asked = True
                left = min(self._stop.seconds_left() - EXIT_SECONDS, LAST_SECONDS)
                end = min(end, time.monotonic() + left)
            if time.monotonic() >= end:
                problem = self._uploader.problem
                kind = type(problem) if problem else UnavailableError
                raise (UnsavedError if was_asked else kind)(
                    "the run has ended, but its last checkpoint is not stored yet"
                    + (f" ({problem})" if problem else "")
                    + "; it is on the local disk, the same command stores it"
                )


def restore(callbacks: Mapping[str, Callback], states: Mapping[str, Any]) -> None:
    """Give each callback the state that a checkpoint has of it."""
    for name, callback in callbacks.items():
        if name in states:
            callback.load_state_dict(states[name])
