"""The owner of a run in a storage: one process at a time, known by its attempt and its lease.

    attempts/attempt-0003.json   one for each start; the process that creates it owns the run
    lease.json                   the owner's lease: {attempt, expires, holder}

Ownership is one conditional write: of two processes that start at once, one creates the next
attempt. An owner that was paused looks for a later attempt before it renews its lease or commits.
All methods raise `UnavailableError` and `CredentialsError` as the storage does.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smallbench.checkpoints.manifest import attempt_name
from smallbench.errors import ConflictError, UnavailableError, UnsavedError
from smallbench.stop import NEVER, Stop
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage, get_json, put_json

LEASE = "lease.json"


class RunLease:
    """The ownership of one run below a storage's URL."""

    def __init__(self, storage: Storage, *, seconds: float = 60) -> None:
        self.storage = storage
        self.seconds = seconds
        self.attempt = 0
        self._holder = ""

    def claim(
        self,
        *,
        holder: str,
        at_least: int = 1,
        stop: Stop = NEVER,
        report: Callable[[str], None] = lambda text: None,
    ) -> int:
        """Take ownership of the run; return the number of the new attempt, at least `at_least`.

        `holder` names the run directory. Its own last attempt is dead, since this process holds the
        directory's lock; another holder's lease must expire first. Raises `ConflictError` if
        another process owns the run.
        """
        newest = self._newest_attempt()
        if newest:
            self._wait_for(newest, holder, stop, report)
        self.attempt, self._holder = max(newest + 1, at_least), holder
        try:
            key = f"attempts/{attempt_name(self.attempt)}.json"
            put_json(self.storage, key, self._content(), only_new=True)
        except AlreadyExistsError:
            raise ConflictError(
                f"another process has just taken over the run in {self.storage.url}; this one has "
                "written nothing"
            ) from None
        self.renew()
        return self.attempt

    def renew(self) -> None:
        """Renew the lease; raise `ConflictError` if another process has taken over the run."""
        self.assert_owned()
        put_json(self.storage, LEASE, self._content())

    def release(self) -> None:
        """Release the lease, so that the next process can start at once."""
        self.assert_owned()
        put_json(self.storage, LEASE, self._content() | {"expires_unix_seconds": 0})

    def read(self) -> dict[str, Any] | None:
        """Return the lease; None if the run was never in this storage."""
        try:
            return get_json(self.storage, LEASE)
        except NotFoundError:
            return None

    def assert_owned(self) -> None:
        """Raise `ConflictError` if a later attempt exists."""
        newest = self._newest_attempt()
        if newest < self.attempt:
            raise UnavailableError(
                f"{self.storage.url} no longer has attempt {self.attempt} of this run; restore the "
                "storage (is it mounted?)"
            )
        if newest > self.attempt:
            raise ConflictError(
                f"attempt {newest} has taken over the run in {self.storage.url} from this one "
                f"(attempt {self.attempt}); nothing of it was damaged"
            )

    def _content(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "expires_unix_seconds": time.time() + self.seconds,
            "lease_seconds": self.seconds,
            "holder": self._holder,
            "host": platform.node(),
        }

    def _newest_attempt(self) -> int:
        names = [stored.key for stored in self.storage.list("attempts/attempt-")]
        return max((int(Path(name).stem.removeprefix("attempt-")) for name in names), default=0)

    def _lease_of(self, attempt: int) -> dict[str, Any]:
        """Return the lease, or the attempt's own file if it has not written a lease yet."""
        lease = self.read()
        if lease and lease["attempt"] == attempt:
            return lease
        return get_json(self.storage, f"attempts/{attempt_name(attempt)}.json")

    def _wait_for(
        self, attempt: int, holder: str, stop: Stop, report: Callable[[str], None]
    ) -> None:
        seen = self._lease_of(attempt)
        if seen["holder"] == holder:
            return
        left = seen["expires_unix_seconds"] - time.time()
        if seen["expires_unix_seconds"] == 0 or left < -10 * seen["lease_seconds"]:
            return  # released, or expired for longer than clocks differ
        # Clocks differ, so wait: an owner that is alive renews its lease in this time.
        seconds = min(max(left, seen["lease_seconds"] / 2), seen["lease_seconds"])
        if seconds > 1:
            report(
                f"attempt {attempt} on {seen['host']} may still write to {self.storage.url}; "
                f"waiting {seconds:.0f} s for its lease to expire"
            )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.2, max(end - time.monotonic(), 0)))
            stop.raise_if_asked("waiting for another process's lease", UnsavedError)
        now = self._lease_of(attempt)
        if now["expires_unix_seconds"] not in {0, seen["expires_unix_seconds"]}:
            raise ConflictError(
                f"attempt {attempt} on {now['host']} is writing to the run in {self.storage.url}; "
                "wait for its end, or choose another --run_dir"
            )
