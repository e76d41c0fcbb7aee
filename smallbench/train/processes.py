"""The processes of a run: one, or one for each GPU of a machine, as `torchrun` starts them.

Process 0 alone writes and talks. Every process draws and corrupts the whole global batch, which is
cheap, and computes on its share of the micro-batches, so that a step is the same for any number of
processes but for the order of its sums.
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

from smallbench.errors import ConfigError, UnavailableError, UnsavedError
from smallbench.stop import NEVER, Stop

TIMEOUT = timedelta(hours=2)
"""Longer than process 0 may take to fetch a checkpoint, or to wait for another writer's lease."""


@dataclass(frozen=True)
class Processes:
    """This process among its like. With one process every method does nothing at once."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; all must ask."""
        return flag if self.size == 1 else any(self.gathered(flag))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def first_of(self, value: Any) -> Any:
        """Process 0's `value`, a plain object, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Processes()


LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` sets in the environment of each process."""

SAY_SECONDS = 5.0
"""How long to wait for the other processes before saying so."""


def join_processes(
    device: torch.device, *, needs_group: bool = False, stop: Stop = NEVER
) -> Processes:
    """Return this process's place among those that `torchrun` started; `ALONE` outside it.

    With `needs_group` there is a process group even for one process: DeepSpeed wants one, and would
    otherwise ask MPI for it. It needs no port: a store in memory does. Raises `ConfigError` if the
    environment is not that of `torchrun`, `UnsavedError` if asked to stop while the other processes
    are waited for.
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
    """Return how many processes were started together, by the environment.

    Raises `ConfigError` for variables that a scheduler (SLURM, MPI) has left, or that contradict
    each other.
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
    """Wait for the other processes, in a thread: PyTorch's own wait does not let a signal in."""
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
            f"the {size} processes could not be joined at {place} "
            f"({str(failures[0]).partition(chr(10))[0]})"
        )


def local_device(device: torch.device) -> torch.device:
    """Return the GPU that `torchrun` means for this process; any other device as it is."""
    if device.type != "cuda" or launched_size() == 1 or "LOCAL_RANK" not in os.environ:
        return device
    mine = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(mine)
    return mine
