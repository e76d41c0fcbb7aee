"""Keeping a storage up to date while training goes on: uploads and the lease, in the background.

Nothing here ever blocks a step. Of checkpoints that wait, only the newest is uploaded; one whose
upload has begun is finished. Where the storage does not answer, the thread tries again, later and
later, until it does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from smallbench.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    SmallbenchError,
    UnavailableError,
)
from smallbench.retry import backoff
from smallbench.train.checkpoint import Checkpoint
from smallbench.train.remote import RemoteRun
from smallbench.train.retention import Retention

TEMPORARY = (UnavailableError, CredentialsError, ConfigError, DataError, OSError)
"""What may pass while a run goes on: servers return, keys are renewed, buckets are made again."""


class Uploader:
    """Uploads the newest checkpoint and renews the lease until it is closed.

    `failure` is what must end the run: another writer took over, or nothing could be stored for
    longer than `max_unsynced_seconds`.
    """

    def __init__(
        self, remote: RemoteRun, retention: Retention, *, max_unsynced_seconds: float
    ) -> None:
        self.remote, self._retention = remote, retention
        self._max_unsynced_seconds = max_unsynced_seconds
        self._changed = threading.Condition()
        self._waiting: list[Checkpoint] = []
        self._unsynced_since: float | None = None
        self.problem: SmallbenchError | None = None
        """What the last try failed with; None after a success."""
        self._uploading: Checkpoint | None = None
        self._abandoned: list[Checkpoint] = []
        self._is_closed = False
        self.failure: SmallbenchError | None = None
        self.committed_step = 0
        self.upload_seconds = 0.0
        """Running average of what an upload takes; 0 before the first."""
        self._threads = [
            threading.Thread(target=self._guard, args=(target,), name=name, daemon=True)
            for target, name in ((self._upload, "upload"), (self._keep_lease, "lease"))
        ]

    def __enter__(self) -> Uploader:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the threads; an upload that is still under way ends with the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._threads[1].join(timeout=5)  # lest it renews a lease that was just given back

    def submit(self, checkpoint: Checkpoint) -> None:
        """Upload it next; one that was still waiting is left out, unless it is kept for ever."""
        with self._changed:
            self._waiting = [c for c in self._waiting if self._retention.is_for_ever(c.step)]
            self._waiting.append(checkpoint)
            if self._unsynced_since is None:
                self._unsynced_since = time.monotonic()
            self._changed.notify_all()

    def is_in_use(self, step: int) -> bool:
        """Whether the local files of a step are still needed here."""
        with self._changed:
            return any(c is not None and c.step == step for c in (*self._waiting, self._uploading))

    def is_busy(self) -> bool:
        """Whether an upload is under way."""
        with self._changed:
            return self._uploading is not None

    def drain(self, seconds: float) -> bool:
        """Wait until everything is committed; False where that takes longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.failure is not None or (not self._waiting and not self._uploading),
                timeout=min(max(seconds, 0), threading.TIMEOUT_MAX),
            )

    def _guard(self, work: Callable[[], None]) -> None:
        """A crash here ends the run too, instead of leaving it without a storage in silence."""
        try:
            work()
        except BaseException as error:
            self._fail(SmallbenchError(f"the thread beside the training crashed: {error!r}"))
            raise

    def _upload(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                self._uploading = self._waiting.pop()  # the newest; others are kept for ever
            self._push(self._uploading)
            with self._changed:
                self._uploading = None
                self._changed.notify_all()

    def _push(self, checkpoint: Checkpoint) -> None:
        """Until it is committed, a newer one waits, or the run must end."""
        for pause in backoff():  # with full jitter: many runs do not return to a server together
            start = time.monotonic()
            try:
                self.remote.push(checkpoint)
            except TEMPORARY as error:
                problem = self.problem = as_ours(error)
                assert self._unsynced_since is not None
                if start - self._unsynced_since > self._max_unsynced_seconds:
                    minutes = self._max_unsynced_seconds / 60
                    self._fail(
                        type(problem)(
                            f"nothing could be stored for over {minutes:g} minutes: {problem}; the "
                            "same command continues from the local disk"
                        )
                    )
                    return
                report(f"step {checkpoint.step:,} is not stored yet, training goes on: {problem}")
                with self._changed:
                    self._changed.wait(pause)
                    if self._is_closed:
                        return
                    if any(c.step > checkpoint.step for c in self._waiting):
                        if self._retention.is_for_ever(checkpoint.step):
                            self._waiting.insert(0, checkpoint)
                        else:
                            self._abandoned.append(checkpoint)
                        return
                continue
            except SmallbenchError as error:
                self._fail(error)
                return
            seconds = time.monotonic() - start
            average = self.upload_seconds
            self.upload_seconds = seconds if not average else 0.7 * average + 0.3 * seconds
            self.committed_step = max(self.committed_step, checkpoint.step)
            with self._changed:
                self._unsynced_since = time.monotonic() if self._waiting else None
            if self.problem:  # of this checkpoint, or of one that it replaced
                report(f"step {checkpoint.step:,} is stored")
            self.problem = None
            try:
                while self._abandoned:
                    self.remote.store.discard(self._abandoned[-1])
                    self._abandoned.pop()
                self.remote.store.prune(self._retention)
            except TEMPORARY as error:  # the next commit tries again
                report(f"old checkpoints could not be deleted: {error}")
            except SmallbenchError as error:
                self._fail(error)
            return

    def _keep_lease(self) -> None:
        while True:
            with self._changed:
                closed = self._changed.wait_for(
                    lambda: self._is_closed, timeout=self.remote.lease.seconds / 3
                )
            if closed:
                return
            try:
                self.remote.lease.renew()
            except TEMPORARY:
                continue  # the uploads say it
            except SmallbenchError as error:
                self._fail(error)
                return

    def _fail(self, error: SmallbenchError) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()


def as_ours(error: Exception) -> SmallbenchError:
    """The error, or one with an exit code for the system's."""
    return error if isinstance(error, SmallbenchError) else UnavailableError(str(error))


def report(text: str) -> None:
    """One line for people beside the metrics."""
    print(f"storage: {text}", file=sys.stderr, flush=True)
