"""A run in a storage: the layout of its directory, written so that two writers never mix.

    run.json, tokenizer/…, metrics.jsonl     as in the run directory
    attempts/attempt-0003.json               one for each start; whoever creates it owns the run
    lease.json                               the owner's sign of life: {attempt, expires, holder}
    checkpoints/step-…/attempt-0003/…        data, below the attempt that wrote it
    commits/step-….json                      the manifest, created last; its presence is the commit
    damaged/step-….json                      manifests that were found to describe damage

Ownership is one conditional write: of two writers that start at once, one creates the next attempt
and the other is told that it exists. An owner that was only paused finds the next attempt there
when it looks, before it renews its lease or commits. All methods raise `UnavailableError` and
`CredentialsError` as the storage does.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallbench.errors import (
    ConflictError,
    CredentialsError,
    DataError,
    UnavailableError,
    UnsavedError,
)
from smallbench.files import read_json, write_bytes
from smallbench.stop import NEVER, Stop
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage, join
from smallbench.tracking.wandb import WandbRun
from smallbench.train.checkpoint import (
    METRICS,
    Checkpoint,
    CheckpointStore,
    Retention,
    check_manifest,
    step_name,
    step_of,
)

LEASE = "lease.json"
RECORD = "run.json"

FILES_AT_ONCE = 2
"""Of an upload: while one is begun or ended, which are requests that carry nothing, the other one's
parts are on the way."""


class RemoteRun:
    """One run below a storage's URL."""

    def __init__(self, storage: Storage, *, lease_seconds: float = 60) -> None:
        self.storage = storage
        self.lease_seconds = lease_seconds
        self.attempt = 0
        self._holder = ""
        self._sent: set[str] = set()
        """Keys that this process has uploaded: what lies there from before may be damaged."""

    # Ownership

    def claim(
        self,
        *,
        holder: str,
        at_least: int = 1,
        stop: Stop = NEVER,
        say: Callable[[str], None] = lambda text: None,
    ) -> int:
        """Own the run from here on; the number of the new attempt, from `at_least` on.

        `holder` names the run directory: its own last attempt is known to be dead, since this
        process holds the directory's lock. Anybody else's is waited for until its lease runs out.
        Raises `ConflictError` where another writer is alive or was quicker.
        """
        newest = self._newest_attempt()
        if newest:
            self._wait_for(newest, holder, stop, say)
        self.attempt, self._holder = max(newest + 1, at_least), holder
        try:
            self._put_json(f"attempts/{attempt_name(self.attempt)}.json", self._lease(), True)
        except AlreadyExistsError:
            raise ConflictError(
                f"another process has just taken over the run in {self.storage.url}; it goes on "
                "there, this one has written nothing"
            ) from None
        self.renew()
        return self.attempt

    def renew(self) -> None:
        """Say that this attempt is alive; raises `ConflictError` where it was taken over."""
        self.assert_owned()
        self._put_json(LEASE, self._lease())

    def release(self) -> None:
        """Let the next writer start at once."""
        self.assert_owned()
        self._put_json(LEASE, self._lease() | {"expires_unix_seconds": 0})

    def lease(self) -> dict[str, Any] | None:
        """The last owner's sign of life; None where the run was never in a storage."""
        try:
            return self._get_json(LEASE)
        except NotFoundError:
            return None

    def assert_owned(self) -> None:
        """Raise `ConflictError` where a later attempt exists."""
        newest = self._newest_attempt()
        if newest < self.attempt:
            raise UnavailableError(
                f"{self.storage.url} no longer holds attempt {self.attempt} of this run; bring "
                "back the storage (is it mounted?)"
            )
        if newest > self.attempt:
            raise ConflictError(
                f"attempt {newest} has taken over the run in {self.storage.url} from this one "
                f"(attempt {self.attempt}); nothing of it was damaged"
            )

    def _lease(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "expires_unix_seconds": time.time() + self.lease_seconds,
            "lease_seconds": self.lease_seconds,
            "holder": self._holder,
            "host": platform.node(),
        }

    def _newest_attempt(self) -> int:
        names = [stored.key for stored in self.storage.list("attempts/attempt-")]
        return max((int(Path(name).stem.removeprefix("attempt-")) for name in names), default=0)

    def _sign_of_life(self, attempt: int) -> dict[str, Any]:
        """The lease, or the attempt's own file where it has not written a lease yet."""
        lease = self.lease()
        if lease and lease["attempt"] == attempt:
            return lease
        return self._get_json(f"attempts/{attempt_name(attempt)}.json")

    def _wait_for(
        self,
        attempt: int,
        holder: str,
        stop: Stop,
        say: Callable[[str], None],
    ) -> None:
        seen = self._sign_of_life(attempt)
        if seen["holder"] == holder:
            return
        left = seen["expires_unix_seconds"] - time.time()
        if seen["expires_unix_seconds"] == 0 or left < -10 * seen["lease_seconds"]:
            return  # given back, or dead for so long that no clock can be that wrong
        # Clocks differ: whoever is alive is seen to renew within this time.
        seconds = min(max(left, seen["lease_seconds"] / 2), seen["lease_seconds"])
        if seconds > 1:
            say(
                f"attempt {attempt} on {seen['host']} may still write to {self.storage.url}; "
                f"waiting {seconds:.0f} s for its lease to run out"
            )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.2, max(end - time.monotonic(), 0)))
            stop.raise_if_asked("waiting for another writer's lease", UnsavedError)
        now = self._sign_of_life(attempt)
        if now["expires_unix_seconds"] not in {0, seen["expires_unix_seconds"]}:
            raise ConflictError(
                f"attempt {attempt} on {now['host']} is writing to the run in {self.storage.url}; "
                "wait for its end, or choose another --run_dir"
            )

    # Records

    def pull_record(self, run_dir: Path) -> None:
        """Fetch `run.json` where the directory has none, or one with fewer attempts.

        Raises `DataError` where the storage holds another run than the directory.
        """
        try:
            content = self.storage.get(RECORD)
        except NotFoundError:
            if self.steps():
                raise DataError(
                    f"{self.storage.url} has checkpoints but no {RECORD}; bring that file back"
                ) from None
            return
        path = run_dir / RECORD
        if not path.exists():
            write_bytes(path, content)
            return
        here, there = read_json(path), json.loads(content)
        if here["run_id"] == there["run_id"]:
            if len(here["attempts"]) < len(there["attempts"]):
                write_bytes(path, content)
        else:
            raise DataError(
                f"{self.storage.url} and {run_dir} hold two different runs; choose another "
                "--run_dir (its last part is the run's name in the storage)"
            )

    def push_record(self, run_dir: Path) -> None:
        """Put `run.json` and the tokenizer beside the checkpoints."""
        self.assert_owned()
        self.storage.put(RECORD, (run_dir / RECORD).read_bytes())
        for path in sorted((run_dir / "tokenizer").iterdir()):
            key = f"tokenizer/{path.name}"
            if self.storage.num_bytes(key) != path.stat().st_size:
                self.storage.upload(path, key)

    def pull_tokenizer(self, run_dir: Path) -> None:
        """Fetch the tokenizer that belongs to the run."""
        for stored in self.storage.list("tokenizer/"):
            path = run_dir / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.download(stored.key, path)

    # Checkpoints

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        keys = [stored.key for stored in self.storage.list("commits/step-")]
        return sorted(step_of(key) for key in keys if re.fullmatch(r"commits/step-\d+\.json", key))

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a commit; raises `DataError` where it cannot be read."""
        return self._manifest(f"commits/{step_name(step)}.json")

    def pull(self, step: int, store: CheckpointStore) -> Checkpoint:
        """Bring a checkpoint to the local store; raises `DataError` where it is damaged."""
        manifest = self.manifest(step)

        def fetch(name: str, path: Path) -> None:
            self.storage.download(f"{manifest['directory']}/{name}", path)

        try:
            return store.adopt(manifest, fetch)
        except DataError:  # once more, lest the network's fault be taken for the checkpoint's
            return store.adopt(manifest, fetch)

    def push(self, checkpoint: Checkpoint) -> None:
        """Upload a checkpoint and commit it; raises `ConflictError` where another writer did."""
        manifest = checkpoint.manifest
        names = {f"{manifest['directory']}/{name}": name for name in manifest["files"]}
        sizes = {key: manifest["files"][name]["bytes"] for key, name in names.items()}

        def send(key: str) -> None:
            if key not in self._sent:
                self.storage.upload(checkpoint.directory / names[key], key)
                self._sent.add(key)
            if self._missing({key: sizes[key]}):  # what was acknowledged, is it there?
                self._sent.discard(key)
                raise UnavailableError(f"{self.storage.url}/{key} did not arrive whole")

        with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="upload") as pool:
            list(pool.map(send, names))
        self.assert_owned()
        commit = f"commits/{step_name(checkpoint.step)}.json"
        try:
            self._put_json(commit, manifest, True)
            try:
                self.assert_owned()
            except ConflictError:
                # Taken over in this very moment, perhaps by somebody to whom the data was debris.
                if self._missing(sizes):
                    self.storage.delete([commit])
                raise
        except AlreadyExistsError:
            if self.manifest(checkpoint.step)["files"] != manifest["files"]:
                raise ConflictError(
                    f"another writer has committed step {checkpoint.step:,} to {self.storage.url} "
                    "with other content; start again to continue from there"
                ) from None
        run_dir = checkpoint.directory.parents[2]
        for key, path in ((METRICS, checkpoint.directory / METRICS), (RECORD, run_dir / RECORD)):
            if path.exists():
                # For people and their tools: what counts is in the checkpoint, and the next brings
                # them again.
                with suppress(UnavailableError, CredentialsError):
                    self.storage.put(key, path.read_bytes())

    def _missing(self, sizes: Mapping[str, int]) -> list[str]:
        return [key for key, size in sizes.items() if self.storage.num_bytes(key) != size]

    def discard(self, checkpoint: Checkpoint) -> None:
        """Delete what has arrived of a checkpoint that will not be committed."""
        if checkpoint.step in self.steps():  # it was, and only the answer was lost
            return
        stored = self.storage.list(f"{checkpoint.manifest['directory']}/")
        self._sent -= {item.key for item in stored}
        self.storage.delete([item.key for item in stored])

    def set_aside(self, step: int) -> None:
        """No longer count a damaged checkpoint as one; its files stay, for a closer look."""
        name = f"{step_name(step)}.json"
        with suppress(NotFoundError):  # pruned meanwhile
            self.storage.put(f"damaged/{name}", self.storage.get(f"commits/{name}"))
            self.storage.delete([f"commits/{name}"])

    def num_set_aside(self) -> int:
        """Checkpoints that were found damaged."""
        return len(self.storage.list("damaged/step-"))

    def prune(self, *retentions: Retention) -> list[int]:
        """Delete what no retention asks for, never the newest two; the steps deleted."""
        steps = self.steps()
        kept = set(steps[-2:]).union(*(retention.retained(steps) for retention in retentions))
        doomed = sorted(set(steps) - kept)
        for step in doomed:
            # The manifest first: data without one is debris, a manifest without data is damage.
            self.storage.delete([f"commits/{step_name(step)}.json"])
            self.storage.delete(
                [stored.key for stored in self.storage.list(f"checkpoints/{step_name(step)}/")]
            )
        return doomed

    def clean_up(self) -> int:
        """Delete what killed writers left; how many objects it was.

        Only the owner may: every earlier attempt is known to be dead, so data of theirs without a
        manifest will never get one.
        """
        count = self.storage.abort_uploads()
        kept = set()
        for stored in (*self.storage.list("commits/"), *self.storage.list("damaged/")):
            try:
                kept.add(self._manifest(stored.key)["directory"])
            except DataError:  # which of them is meant, nobody can say
                kept.add(f"checkpoints/{step_name(step_of(stored.key))}")
        debris = [
            stored.key
            for stored in self.storage.list("checkpoints/")
            if not any(stored.key.startswith(f"{directory}/") for directory in kept)
        ]
        if debris:
            self.assert_owned()
            self.storage.delete(debris)
        return count + len(debris)

    def _manifest(self, key: str) -> dict[str, Any]:
        manifest = self._get_json(key)
        check_manifest(manifest)
        return manifest

    def _get_json(self, key: str) -> dict[str, Any]:
        raw = self.storage.get(key)
        try:
            content = json.loads(raw)
        except ValueError as error:
            raise DataError(f"{self.storage.url}/{key} is no JSON ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.storage.url}/{key} holds no JSON object")
        return content

    def _put_json(self, key: str, content: Mapping[str, Any], only_new: bool = False) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.storage.put(key, text.encode(), only_new=only_new)


def attempt_name(attempt: int) -> str:
    """`attempt-0003`, as in the paths of its data."""
    return f"attempt-{attempt:04d}"


def refer_checkpoints(view: WandbRun, run_id: str, remote: RemoteRun) -> None:
    """Show the checkpoints of a finished run, where they are, as versions of one artifact.

    Not before: until then each of them may still be deleted.
    """
    steps = remote.steps()
    for step in steps:
        manifest = remote.manifest(step)
        view.refer(
            f"checkpoint-{run_id}",
            kind="checkpoint",
            url=join(remote.storage.url, manifest["directory"]),
            files=manifest["files"],
            metadata={"step": step, "files": manifest["files"], "progress": manifest["progress"]},
            aliases=[step_name(step), *(["final"] if step == steps[-1] else [])],
        )


@dataclass(frozen=True)
class Pulled:
    """A remote run as a place to load checkpoints from: by way of a local store."""

    remote: RemoteRun
    store: CheckpointStore

    def __str__(self) -> str:
        return self.remote.storage.url

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return self.remote.steps()

    def load(self, step: int) -> Checkpoint:
        """Pull the checkpoint; raises `DataError` where it is damaged."""
        return self.remote.pull(step, self.store)

    def set_aside(self, step: int) -> None:
        """No longer count it as one."""
        self.remote.set_aside(step)

    def num_set_aside(self) -> int:
        """Checkpoints that were found damaged."""
        return self.remote.num_set_aside()
