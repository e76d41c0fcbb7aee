"""The processes of a run: one, or one for each GPU of a machine, as `torchrun` starts them.

Only process 0 writes and prints. Every process draws and corrupts the whole global batch, which is
cheap, and computes its share of the micro-batches, so the number of processes only changes the
order of sums.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smallbench.errors import ConfigError, UnavailableError, UnsavedError, reason_of
from smallbench.stop import NEVER, Stop

TIMEOUT = timedelta(hours=2)
"""Longer than process 0 may take to fetch a checkpoint, or to wait for another writer's lease."""


@dataclass(frozen=True)
class Processes:
    """Rank and world size, with collectives that do nothing for one process."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process; all must call it."""
        return flag if self.size == 1 else any(self.gathered(flag))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensors of all processes in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def first_of(self, value: Any) -> Any:
        """Return process 0's `value` in all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Processes()


LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that `torchrun` sets."""

SAY_SECONDS = 5.0
"""How long to wait for the other processes before a message is printed."""


def join_processes(
    device: torch.device, *, needs_group: bool = False, stop: Stop = NEVER
) -> Processes:
    """Join the processes that `torchrun` started; return `ALONE` outside of it.

    `needs_group` makes a process group even for one process, with a store in memory: DeepSpeed
    would otherwise ask MPI for one. Raises `ConfigError` if the environment is not that of
    `torchrun`, `UnsavedError` if asked to stop while waiting for the other processes.
    """
    size = launched_size()
    if size == 1 and not needs_group:
        return ALONE
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if size > 1:
            _meet(backend, size, stop)
        else:
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return Processes(dist.get_rank(), dist.get_world_size())


def launched_size() -> int:
    """Return the world size of the environment.

    Raises `ConfigError` for variables of another launcher (SLURM, MPI), or that contradict each
    other.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if text == "1":
        return 1
    remedy = (
        "start it with 'torchrun --nproc_per_node=N -m smallbench.jobs.pretrain …', or unset "
        "WORLD_SIZE and RANK to train with one process"
    )
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={text} is set without {', '.join(missing)}, so this process was not "
            f"started by torchrun; {remedy}"
        )
    rank = os.environ["RANK"]
    if not (text.isdecimal() and rank.isdecimal() and int(rank) < int(text)):
        raise ConfigError(
            f"Invalid RANK={rank} and WORLD_SIZE={text}: expected 0 <= RANK < WORLD_SIZE; {remedy}"
        )
    return int(text)


def _meet(backend: str, size: int, stop: Stop) -> None:
    """Wait for the other processes in a thread, since PyTorch's wait blocks signals."""
    failures: list[Exception] = []

    def join() -> None:
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except Exception as error:  # handed to the thread that waits
            failures.append(error)

    thread = threading.Thread(target=join, name="join-processes", daemon=True)
    begin, was_said = time.monotonic(), False
    thread.start()
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    while thread.is_alive():
        thread.join(timeout=0.1)
        stop.raise_if_asked(f"waiting for {size} processes at {place}", UnsavedError)
        if not was_said and time.monotonic() - begin > SAY_SECONDS:
            was_said = True
            print(f"waiting for {size} processes at {place}", file=sys.stderr, flush=True)
    if failures:
        raise UnavailableError(
            f"the {size} processes could not be joined at {place} ({reason_of(failures[0])})"
        )


def local_device(device: torch.device) -> torch.device:
    """Return the GPU that `torchrun` assigns to this process; any other device unchanged."""
    if device.type != "cuda" or launched_size() == 1 or "LOCAL_RANK" not in os.environ:
        return device
    mine = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(mine)
    return mine
