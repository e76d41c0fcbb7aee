"""Callbacks that keep a run: local checkpoints, and their uploads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from smallbench.checkpoints.state import random_state
from smallbench.checkpoints.store import CheckpointStore
from smallbench.checkpoints.uploader import Uploader
from smallbench.errors import ConflictError, SmallbenchError, UnavailableError, UnsavedError
from smallbench.train.budget import Progress
from smallbench.train.trainer import Callback, StepResult

LAST_SECONDS = 30.0
"""How long to continue storing a finished run after a signal, if no grace period is set."""

EXIT_SECONDS = 1.0
"""This much of the grace period is left for the exit itself."""


class SaveCheckpoints(Callback):
    """Commits a checkpoint at an interval of steps and of minutes, at milestones and at the end.

    Minutes are those of `Progress.train_seconds`, which all processes agree on. A save does not
    change what is computed, so its time does not matter for an exact resume.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        facts: Mapping[str, Any],
        every_steps: int,
        every_minutes: float,
        milestones: Collection[int] = (),
        before: Callable[[Progress], None] = lambda progress: None,
        after: Callable[[Progress], None] = lambda progress: None,
        uploader: Uploader | None = None,
    ) -> None:
        """`facts` is added to every manifest.

        `before` and `after` are called around the write, in process 0 only.
        """
        self._store, self._facts, self._uploader = store, facts, uploader
        self._every_steps, self._every_seconds = every_steps, 60 * every_minutes
        self._milestones, self._before, self._after = milestones, before, after
        self._first_step, self._saved_at = 0, 0.0
        self.seconds = 0.0
        """Running average of the duration of a save; 0 before the first."""

    def on_start(self, progress: Progress) -> None:
        """Count minutes from here."""
        self._first_step, self._saved_at = progress.step, progress.train_seconds

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Save if it is due."""
        if (
            progress.step % self._every_steps == 0
            or progress.step in self._milestones
            or progress.train_seconds - self._saved_at >= self._every_seconds
        ):
            self.save(progress)

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Save; raise `UnsavedError` if a request to stop leaves no time for it."""
        if not is_done and progress.step == self._first_step:
            # A scheduler that restarts such a run again and again would make no progress.
            raise SmallbenchError(
                f"stop requested at step {progress.step:,}, before this attempt had done a step; "
                "there is nothing new to save"
            )
        needed = 0.0 if progress.step in self._store.steps() else self.seconds
        # Process 0 decides for all: it alone measures, and a save needs every process.
        left, needed = self.trainer.engine.processes.first_of(
            (self.trainer.stop.seconds_left(), needed)
        )
        if not is_done and left < needed:
            problem = (
                f"stop requested with {max(left, 0):.1f} s of grace left, but saving takes about "
                f"{needed:.1f} s, so no checkpoint was written"
            )
            if needed < 0.05:  # nothing was saved yet, so its duration is not known
                problem = "the time limit passed before a checkpoint could be written"
            resumed = max(self._store.steps(), default=0)
            raise UnsavedError(f"{problem}; the same command resumes from step {resumed:,}")
        self.save(progress)

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint now, unless this step has one."""
        start, self._saved_at = time.perf_counter(), progress.train_seconds
        engine = self.trainer.engine
        # Every process takes part: each may hold a part of the state.
        weights, state = engine.weights(), engine.state_dict()
        generators = engine.processes.gathered(random_state())
        if not engine.processes.is_first:
            return
        self.trainer.beat()
        self._before(progress)
        is_new = progress.step not in self._store.steps()
        manifest = {
            **self._facts,
            "step": progress.step,
            "progress": progress.state_dict(),
            "callbacks": self.trainer.callback_states(),
        }
        checkpoint = self._store.save(weights, state, generators, manifest)
        self._after(progress)
        if is_new:
            seconds, average = time.perf_counter() - start, self.seconds
            self.seconds = seconds if not average else 0.7 * average + 0.3 * seconds
            if self._uploader:
                self._uploader.submit(checkpoint)


class WaitForUploads(Callback):
    """Ends the run if storing failed, and keeps it from ending before its checkpoint is stored."""

    def __init__(
        self, uploader: Uploader, save: Callable[[Progress], None], *, max_seconds: float
    ) -> None:
        """After the last step, wait up to `max_seconds`; after a request to stop, the grace."""
        self._uploader, self._save, self._max_seconds = uploader, save, max_seconds

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Raise the failure of the uploads; save first, unless another process owns the run."""
        error = self._uploader.failure
        if error is None:
            return
        if not isinstance(error, ConflictError):
            self._save(progress)
        raise error

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Wait for the last upload; raise `UnsavedError` if the time is too short for it.

        If asked to stop while it waits, a finished run waits for a shorter time.
        """
        stop, was_asked = self.trainer.stop, not is_done
        seconds = self._max_seconds if is_done else stop.seconds_left() - EXIT_SECONDS
        end = time.monotonic() + seconds
        while not self._uploader.drain(min(0.5, end - time.monotonic())):
            self.trainer.beat()
            if not was_asked and stop.asked():
                was_asked = True
                left = min(stop.seconds_left() - EXIT_SECONDS, LAST_SECONDS)
                end = min(end, time.monotonic() + left)
            if time.monotonic() >= end:
                raise self._not_uploaded(progress, is_done=is_done, was_asked=was_asked)
        if self._uploader.failure:
            raise self._uploader.failure

    def _not_uploaded(
        self, progress: Progress, *, is_done: bool, was_asked: bool
    ) -> SmallbenchError:
        problem = self._uploader.problem
        if is_done:
            kind = UnsavedError if was_asked else type(problem) if problem else UnavailableError
            return kind(
                "the run has ended, but its last checkpoint is not stored yet"
                + (f" ({problem})" if problem else "")
                + "; it is on the local disk, and the same command stores it"
            )
        return self._uploader.failure or UnsavedError(
            f"stop requested; step {progress.step:,} is on the local disk, but there was not "
            "enough time to store it; the same command continues from there, or from step "
            f"{self._uploader.committed_step:,} on another machine"
        )
