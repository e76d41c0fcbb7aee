"""Before a run: how an attempt comes to own its directory and its storage.

Everything that may refuse (another run in the directory, another writer, another precision) does so
here, before anything is computed. Of several processes only the first one comes here.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from smallbench.data.shards import Manifest
from smallbench.data.tokenizer import file_fingerprint
from smallbench.data.verified import MEMORY_NAME, verify_once
from smallbench.errors import ConfigError, SmallbenchError
from smallbench.files import copy_directory, exclusive_lock
from smallbench.stop import Stop
from smallbench.storage import open_storage
from smallbench.storage.base import check_path, is_remote, join
from smallbench.storage.local import LocalStorage
from smallbench.train.checkpoint import Checkpoint, CheckpointStore, newest_checkpoint
from smallbench.train.config import DurabilityConfig, PretrainConfig
from smallbench.train.machine import Machine
from smallbench.train.record import (
    LOCK_NAME,
    add_attempt,
    holder_of,
    next_attempt,
    open_record,
)
from smallbench.train.remote import RemoteRun
from smallbench.train.retention import Retention
from smallbench.train.run_record import Record
from smallbench.train.sync import Uploader, report

Resume = Literal["allow", "must", "never"]

RELEASE_SECONDS = 3.0
"""How long to try to give the lease back."""


@dataclass(frozen=True)
class RunStorage:
    """Where an attempt keeps its checkpoints; only process 0 writes."""

    store: CheckpointStore
    uploader: Uploader | None


def open_run_storage(
    config: PretrainConfig,
    machine: Machine,
    manifest: Manifest,
    *,
    data: Path,
    run_dir: Path,
    resume: Resume,
    durability: DurabilityConfig,
    stop: Stop,
    stack: ExitStack,
) -> tuple[RunStorage, Checkpoint | None]:
    """Own the run directory and the storage, and find the checkpoint to go on from."""
    check_path(run_dir, name="--run_dir")
    store = CheckpointStore(run_dir)
    if resume == "must" and not durability.storage and not store.steps():
        raise ConfigError(f"--resume=must, but {run_dir} holds no checkpoint")
    remote = _open_remote(run_dir, durability)
    in_use = f"another process trains in {run_dir}; wait for it, or choose another --run_dir"
    stack.enter_context(exclusive_lock(run_dir / LOCK_NAME, in_use))
    open_again = partial(_open_record, config, manifest, data, run_dir, resume, remote, durability)
    record = open_again()
    attempt, uploader = next_attempt(record), None
    retention = Retention(
        keep_last=config.train.keep_last,
        keep_every_steps=config.train.keep_every_steps,
        milestones=config.train.milestones,
    )
    if remote:
        attempt = remote.lease.claim(
            holder=holder_of(run_dir), at_least=attempt, stop=stop, report=report
        )
        uploader = _start_uploads(remote, retention, durability, stack)
        # Again: whoever was waited for may have begun the run, or gone on with it.
        record = open_again()
        remote.store.clean_up()
    store = CheckpointStore(
        run_dir,
        attempt=attempt,
        retention=retention,
        is_in_use=uploader.is_in_use if uploader else lambda step: False,
    )
    store.clean_up()
    checkpoint = newest_checkpoint([store, *([remote.store] if remote else [])], store)
    if checkpoint is not None:
        _refuse_other_precision(checkpoint, machine, run_dir)
    verify_once(data, run_dir / MEMORY_NAME)
    _copy_tokenizer(data, run_dir, fingerprint=manifest.tokenizer.fingerprint)
    add_attempt(
        run_dir,
        record,
        attempt,
        first_step=checkpoint.step if checkpoint else 0,
        device=machine.device,
        precision=machine.precision,
        engine=asdict(machine.engine),
        num_processes=machine.processes.size,
    )
    if remote and uploader:
        remote.push_record(run_dir)
        uploader.committed_step = max(remote.store.steps(), default=0)
        if checkpoint is not None and checkpoint.step > uploader.committed_step:
            uploader.submit(checkpoint)  # the last attempt did not come to it
    return RunStorage(store, uploader), checkpoint


def _start_uploads(
    remote: RemoteRun, retention: Retention, durability: DurabilityConfig, stack: ExitStack
) -> Uploader:
    """Upload, and renew the lease, until `stack` is closed."""
    seconds = 60 * durability.max_unsynced_minutes
    uploader = Uploader(remote, retention, max_unsynced_seconds=seconds)
    stack.callback(_release, remote, uploader)
    return stack.enter_context(uploader)


def _refuse_other_precision(checkpoint: Checkpoint, machine: Machine, run_dir: Path) -> None:
    precision = checkpoint.manifest["precision"]
    if precision != machine.precision:
        raise ConfigError(
            f"{run_dir} was trained in {precision}, this device would use {machine.precision}; "
            "continue on a device like the first, or start a new --run_dir"
        )


def _open_record(
    config: PretrainConfig,
    manifest: Manifest,
    data: Path,
    run_dir: Path,
    resume: Resume,
    remote: RemoteRun | None,
    durability: DurabilityConfig,
) -> Record:
    """The run's record, after a look whether it may go on here."""
    stores = [CheckpointStore(run_dir), *([remote.store] if remote else [])]
    for store in stores:  # before anything is written or claimed
        store.refuse_other_versions()
    if remote:
        remote.pull_record(run_dir)
    _check_resume(resume, stores)
    return open_record(
        run_dir,
        config,
        data=data,
        manifest=manifest,
        has_checkpoints=any(store.steps() or store.quarantined() for store in stores),
        allow_changed_code=durability.allow_changed_code,
    )


def _copy_tokenizer(data: Path, run_dir: Path, *, fingerprint: str) -> None:
    """Keep the corpus's tokenizer with the run."""
    source, target = data / "tokenizer", run_dir / "tokenizer"
    path = target / "tokenizer.json"
    if path.exists() and file_fingerprint(path) == fingerprint:
        return
    shutil.rmtree(target, ignore_errors=True)  # of an attempt with another corpus
    copy_directory(source, target)


def _open_remote(run_dir: Path, durability: DurabilityConfig) -> RemoteRun | None:
    """The run in the storage, after a look whether it can be read and written."""
    if durability.storage is None:
        return None
    is_remote(durability.storage, name="--storage")  # before the run's name is added
    here = run_dir.resolve()
    storage = open_storage(join(durability.storage, here.name), durability)
    if isinstance(storage, LocalStorage):
        there = Path(storage.url).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ConfigError(
                f"--storage={durability.storage} would keep the run in its own directory {here}; "
                "choose another place"
            )
    storage.check()
    return RemoteRun(storage, lease_seconds=durability.lease_seconds)


def _check_resume(resume: Resume, stores: Sequence[CheckpointStore]) -> None:
    steps = {step for store in stores for step in store.steps()}
    where = " and ".join(map(str, stores))
    if resume == "must" and not steps:
        raise ConfigError(f"--resume=must, but {where} holds no checkpoint")
    if resume == "never" and steps:
        raise ConfigError(
            f"{where} already holds a run at step {max(steps):,}; choose another --run_dir, or "
            "leave --resume=never out"
        )


def _release(remote: RemoteRun, uploader: Uploader) -> None:
    """Give the lease back, unless something of ours is still on its way; then it runs out."""
    if uploader.failure or uploader.is_busy():
        return

    def release() -> None:
        try:
            remote.lease.release()
        except (SmallbenchError, OSError) as problem:
            report(f"the lease was not given back: {problem}")

    # A server that has fallen silent must not hold up the exit.
    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    thread.join(timeout=RELEASE_SECONDS)
