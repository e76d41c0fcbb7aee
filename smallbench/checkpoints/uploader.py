"""Background uploads of a run, and the renewal of its lease.

Neither blocks a step. Of several waiting checkpoints only the newest is uploaded; an upload that
has begun is finished. After an error that may pass, the upload is retried with growing pauses.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import Checkpoint
from smallbench.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    SmallbenchError,
    UnavailableError,
)
from smallbench.retry import backoff

RETRIED_ERRORS = (UnavailableError, CredentialsError, ConfigError, DataError, OSError)
"""Errors that may pass during a run: servers return, keys are renewed, buckets are created."""

RELEASE_SECONDS = 3.0
"""Time limit for releasing the lease."""


class Uploader:
    """Uploads the newest checkpoint and renews the lease until its context ends.

    `failure` must end the run: another writer took over, or nothing could be stored for longer than
    `max_unsynced_seconds`.
    """

    def __init__(
        self, remote: RemoteRun, retention: Retention, *, max_unsynced_seconds: float
    ) -> None:
        self.remote, self._retention = remote, retention
        self._max_unsynced_seconds = max_unsynced_seconds
        self._changed = threading.Condition()
        self._waiting: list[Checkpoint] = []
        self._uploading: Checkpoint | None = None
        self._abandoned: list[Checkpoint] = []
        self._unsynced_since: float | None = None
        self._is_closed = False
        self.problem: SmallbenchError | None = None
        """The error of the last attempt; None after a success."""
        self.failure: SmallbenchError | None = None
        self.committed_step = 0
        self._threads = [
            threading.Thread(target=self._guard, args=(target,), name=name, daemon=True)
            for target, name in ((self._upload, "upload"), (self._keep_lease, "lease"))
        ]

    def __enter__(self) -> Uploader:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the threads and give the lease back, unless an upload is under way or failed.

        That upload ends with the process, and then the lease runs out.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._threads[1].join(timeout=5)  # otherwise it could renew the released lease
        if self.failure or self._uploading:
            return
        # A server that no longer answers must not delay the exit.
        thread = threading.Thread(target=self._release, daemon=True)
        thread.start()
        thread.join(timeout=RELEASE_SECONDS)

    def _release(self) -> None:
        try:
            self.remote.lease.release()
        except (SmallbenchError, OSError) as problem:
            report(f"the lease was not given back: {problem}")

    def submit(self, checkpoint: Checkpoint) -> None:
        """Upload it next; skip superseded uploads unless retention pins them."""
        with self._changed:
            self._waiting = [c for c in self._waiting if self._retention.is_pinned(c.step)]
            self._waiting.append(checkpoint)
            if self._unsynced_since is None:
                self._unsynced_since = time.monotonic()
            self._changed.notify_all()

    def is_in_use(self, step: int) -> bool:
        """Return whether an upload still needs the local files of a step."""
        with self._changed:
            return any(c is not None and c.step == step for c in (*self._waiting, self._uploading))

    def drain(self, seconds: float) -> bool:
        """Wait until everything is committed; return False if that takes longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.failure is not None or (not self._waiting and not self._uploading),
                timeout=min(max(seconds, 0), threading.TIMEOUT_MAX),
            )

    def _guard(self, work: Callable[[], None]) -> None:
        """End the run if a thread fails, so that it does not continue without a storage."""
        try:
            work()
        except SmallbenchError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(SmallbenchError(f"the thread beside the training crashed: {error!r}"))
            raise

    def _fail(self, error: SmallbenchError) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    def _upload(self) -> None:
        while True:
            with self._changed:
                self._uploading = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                # The newest is last; others that wait are pinned by retention.
                checkpoint = self._uploading = self._waiting.pop()
            self._push(checkpoint)

    def _push(self, checkpoint: Checkpoint) -> None:
        """Retry until it is committed, superseded or the context ends."""
        for pause in backoff():  # full jitter, so that many runs do not return to a server together
            start = time.monotonic()
            try:
                self.remote.push(checkpoint)
                break
            except RETRIED_ERRORS as error:
                problem = UnavailableError(str(error)) if isinstance(error, OSError) else error
                self.problem = problem
            assert self._unsynced_since is not None
            if start - self._unsynced_since > self._max_unsynced_seconds:
                minutes = self._max_unsynced_seconds / 60
                raise type(problem)(
                    f"nothing could be stored for over {minutes:g} minutes: {problem}; the same "
                    "command continues from the local disk"
                )
            report(f"step {checkpoint.step:,} is not stored yet, training continues: {problem}")
            with self._changed:
                self._changed.wait(pause)
                if self._is_closed:
                    return
                if any(c.step > checkpoint.step for c in self._waiting):
                    if self._retention.is_pinned(checkpoint.step):
                        self._waiting.insert(0, checkpoint)
                    else:
                        self._abandoned.append(checkpoint)
                    return
        self.committed_step = max(self.committed_step, checkpoint.step)
        with self._changed:
            self._unsynced_since = time.monotonic() if self._waiting else None
        if self.problem:  # of this checkpoint or of a superseded one
            report(f"step {checkpoint.step:,} is stored")
        self.problem = None
        self._prune()

    def _prune(self) -> None:
        try:
            while self._abandoned:
                self.remote.store.discard(self._abandoned[-1])
                self._abandoned.pop()
            self.remote.store.prune(self._retention)
        except RETRIED_ERRORS as error:  # the next commit tries again
            report(f"old checkpoints could not be deleted: {error}")

    def _keep_lease(self) -> None:
        lease = self.remote.lease
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, timeout=lease.seconds / 3):
                    return
            try:
                lease.renew()
            except RETRIED_ERRORS:
                continue  # the uploads report it


def report(text: str) -> None:
    """Print one line about the storage on stderr."""
    print(f"storage: {text}", file=sys.stderr, flush=True)
