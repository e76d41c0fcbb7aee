"""Inspect and manage the checkpoints of a run: list, verify, pull and prune them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallbench.checkpoints.lease import RunLease
from smallbench.checkpoints.manifest import METRICS, DamagedError
from smallbench.checkpoints.record import LOCK_NAME, RECORD_NAME, parse_record
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import (
    CheckpointStore,
    newest_checkpoint,
    restore_metrics,
)
from smallbench.errors import ConfigError, ConflictError, DataError
from smallbench.files import exclusive_lock
from smallbench.storage import open_storage
from smallbench.storage.base import NotFoundError, Storage, is_remote
from smallbench.storage.config import StorageConfig
from smallbench.storage.local import LocalStorage


def open_run(url: str, config: StorageConfig) -> Storage:
    """Return the storage of a run, or its directory; raise `DataError` if there is no run."""
    storage = open_storage(url, config)
    if storage.num_bytes(RECORD_NAME) is None:
        raise DataError(
            f"{storage.url} is not a run ({RECORD_NAME} is missing); expected STORAGE/NAME of a run"
        )
    return storage


def checkpoints_table(storage: Storage) -> str:
    """Return a line for each checkpoint, oldest first, and the number of damaged ones."""
    store = CheckpointStore(storage)
    lines = [f"{'step':>14}  {'attempt':>7}  {'size':>11}  {'tokens':>16}  committed"]
    for step, stored in sorted(store.commits().items()):
        try:
            manifest = store.manifest(step)
        except NotFoundError:  # pruned in the meantime
            continue
        except DataError as error:
            kind = "damaged" if isinstance(error, DamagedError) else "not readable"
            lines.append(f"{step:>14,}  {kind}: {error}")
            continue
        num_bytes = sum(file["bytes"] for file in manifest["files"].values())
        tokens = manifest.get("progress", {}).get("num_tokens", 0)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(stored.modified_unix_seconds))
        lines.append(
            f"{step:>14,}  {manifest['attempt']:>7}  {num_bytes / 2**20:>7,.1f} MiB  "
            f"{tokens:>16,}  {when} UTC"
        )
    if len(lines) == 1:
        lines.append("no checkpoint yet")
    if count := len(store.quarantined()):
        lines.append(f"{count} more found damaged and set aside")
    return "\n".join(lines)


def verify(storage: Storage, *, step: int | None = None) -> str:
    """Read every file of one checkpoint or of all; return a line for each.

    Raises `DataError` naming the damaged ones.
    """
    store = CheckpointStore(storage)
    if step is not None:
        store.require(step)
    steps = store.steps() if step is None else [step]
    lines, damaged = [], []
    for number in steps:
        try:
            store.verify(number)
            lines.append(f"step {number:,}: whole")
        except DamagedError as error:
            if number in store.steps():  # otherwise it was pruned in the meantime
                damaged.append(f"step {number:,}: {error}")
        except NotFoundError:
            continue
    if damaged:
        raise DataError(f"{len(damaged)} of {len(steps)} checkpoints damaged: {'; '.join(damaged)}")
    return "\n".join(lines)


def pull(storage: Storage, out: Path, *, step: int | None = None) -> int:
    """Download a checkpoint (by default the newest whole one) to `out`; return its step."""
    remote = RemoteRun(storage)
    if isinstance(storage, LocalStorage) and Path(storage.url).resolve() == out.resolve():
        raise ConfigError(f"--out={out} is the run itself; choose another directory")
    with exclusive_lock(out / LOCK_NAME, f"another process uses {out}; choose another --out"):
        # First, since it refuses another run's directory.
        remote.pull_record(out, remedy="another --out")
        store = CheckpointStore(out, retention=Retention(keep_last=2**31))
        if step is None:
            checkpoint = newest_checkpoint([remote.store], store, quarantine=False)
            if checkpoint is None:
                raise DataError(f"the run in {storage.url} has no checkpoint yet")
        else:
            remote.store.require(step)
            checkpoint = store.download(step, remote.store)
        remote.pull_tokenizer(out)
        if checkpoint.step == max(store.steps()):
            restore_metrics(checkpoint, out / METRICS)
    return checkpoint.step


@contextmanager
def local_run_directory(url: str, config: StorageConfig | None = None) -> Iterator[Path]:
    """Yield `url` as a path; a remote run is a temporary copy with its newest checkpoint."""
    if not is_remote(url, name="--run"):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="smallbench-run-") as folder:
        pull(open_run(url, config or StorageConfig()), Path(folder) / "run")
        yield Path(folder) / "run"


def prune(storage: Storage, retention: Retention) -> list[int]:
    """Delete checkpoints that neither `retention` nor the run itself keeps; return their steps.

    Raises `ConflictError` while the run's owner may be alive, since only the owner may delete.
    """
    lease = RunLease(storage).read()
    if lease and lease["expires_unix_seconds"] > time.time():
        raise ConflictError(
            f"attempt {lease['attempt']} on {lease['host']} is writing to {storage.url} and prunes "
            "by its own flags; try again when it has ended"
        )
    name = f"{storage.url}/{RECORD_NAME}"
    train = parse_record(storage.get(RECORD_NAME), name)["config"].get("train", {})
    own = Retention(
        keep_every_steps=train.get("keep_every_steps"),
        milestones=tuple(train.get("milestones", ())),
    )
    store = CheckpointStore(storage)
    store.refuse_other_versions()
    if isinstance(storage, LocalStorage):
        in_use = f"another process trains in {storage.url}; try again when it has ended"
        with exclusive_lock(Path(storage.url) / LOCK_NAME, in_use):
            return store.prune(retention, own)
    return store.prune(retention, own)
