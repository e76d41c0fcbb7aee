"""How an attempt comes to own its run directory and storage, before anything is computed.

Whatever may refuse does so here: another run in the directory, another writer, another precision.
Of several processes only the first calls this module.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from smallbench.checkpoints.record import (
    LOCK_NAME,
    Record,
    add_attempt,
    holder_of,
    next_attempt,
)
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import Checkpoint, CheckpointStore, newest_checkpoint
from smallbench.checkpoints.uploader import Uploader, report
from smallbench.data.shards import MEMORY_NAME, TokenRows, verify_once
from smallbench.data.tokenizer import file_fingerprint
from smallbench.errors import ConfigError
from smallbench.files import atomic_directory, exclusive_lock
from smallbench.pretraining.machine import Machine
from smallbench.pretraining.run_record import open_run_record
from smallbench.stop import Stop
from smallbench.storage import open_storage
from smallbench.storage.base import check_path, is_remote, join
from smallbench.storage.local import LocalStorage
from smallbench.train.config import DurabilityConfig, PretrainConfig

Resume = Literal["allow", "must", "never"]


def open_run_storage(
    config: PretrainConfig,
    machine: Machine,
    rows: TokenRows,
    *,
    data: Path,
    run_dir: Path,
    resume: Resume,
    durability: DurabilityConfig,
    stop: Stop,
    stack: ExitStack,
) -> tuple[CheckpointStore, Uploader | None, Checkpoint | None]:
    """Own the run directory and the storage; return them and the checkpoint to resume from."""
    check_path(run_dir, name="--run_dir")
    local = CheckpointStore(run_dir)
    if not durability.storage:
        _check_resume(resume, [local])  # before the directory is made
    remote = _open_remote(run_dir, durability)
    stores = [local, *([remote.store] if remote else [])]

    def open_again() -> Record:
        for store in stores:  # before anything is written or claimed
            store.refuse_other_versions()
        if remote:
            remote.pull_record(run_dir)
        _check_resume(resume, stores)
        has_some = any(store.steps() or store.quarantined() for store in stores)
        may_change = durability.allow_changed_code
        return open_run_record(
            run_dir, config, rows, data, has_checkpoints=has_some, allow_changed_code=may_change
        )

    in_use = f"another process trains in {run_dir}; wait for it, or choose another --run_dir"
    stack.enter_context(exclusive_lock(run_dir / LOCK_NAME, in_use))
    record = open_again()
    attempt, uploader, train = next_attempt(record), None, config.train
    retention = Retention(train.keep_last, train.keep_every_steps, train.milestones)
    if remote:
        holder = holder_of(run_dir)
        attempt = remote.lease.claim(holder=holder, at_least=attempt, stop=stop, report=report)
        seconds = 60 * durability.max_unsynced_minutes
        uploader = stack.enter_context(Uploader(remote, retention, max_unsynced_seconds=seconds))
        record = open_again()  # the previous owner may have changed it in the meantime
        remote.store.clean_up()
    stores[0] = store = CheckpointStore(
        run_dir, attempt=attempt, retention=retention,
        is_in_use=uploader.is_in_use if uploader else lambda step: False,
    )  # fmt: skip
    store.clean_up()
    checkpoint = newest_checkpoint(stores, store)
    _refuse_other_precision(checkpoint, machine, run_dir)
    verify_once(data, run_dir / MEMORY_NAME)
    _copy_tokenizer(data, run_dir, fingerprint=rows.tokenizer.fingerprint)
    step = checkpoint.step if checkpoint else 0
    add_attempt(run_dir, record, attempt, first_step=step, machine=machine.facts())
    if uploader:
        _begin_uploads(uploader, run_dir, checkpoint)
    return store, uploader, checkpoint


def _begin_uploads(uploader: Uploader, run_dir: Path, checkpoint: Checkpoint | None) -> None:
    remote = uploader.remote
    remote.push_record(run_dir)
    uploader.committed_step = max(remote.store.steps(), default=0)
    if checkpoint is not None and checkpoint.step > uploader.committed_step:
        uploader.submit(checkpoint)  # the last attempt did not upload it


def _refuse_other_precision(checkpoint: Checkpoint | None, machine: Machine, run_dir: Path) -> None:
    precision = checkpoint.manifest["precision"] if checkpoint else machine.precision
    if precision != machine.precision:
        raise ConfigError(
            f"{run_dir} was trained in {precision}, but this device would use {machine.precision}; "
            "continue on a device like the first, or start a new --run_dir"
        )


def _copy_tokenizer(data: Path, run_dir: Path, *, fingerprint: str) -> None:
    """Keep the corpus's tokenizer with the run."""
    source, target = data / "tokenizer", run_dir / "tokenizer"
    path = target / "tokenizer.json"
    if path.exists() and file_fingerprint(path) == fingerprint:
        return
    with atomic_directory(target) as temporary:
        for file in source.iterdir():
            shutil.copyfile(file, temporary / file.name)


def _open_remote(run_dir: Path, durability: DurabilityConfig) -> RemoteRun | None:
    """Open the run in the storage; check that it can be read and written."""
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
        raise ConfigError(f"--resume=must requires a checkpoint, but {where} has none")
    if resume == "never" and steps:
        raise ConfigError(
            f"--resume=never, but {where} has a run at step {max(steps):,}; choose another "
            "--run_dir, or leave --resume=never out"
        )
