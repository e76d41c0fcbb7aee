"""The processes of a run: one, or one for each GPU of a machine, as `torchrun` starts them.

Process 0 alone writes and talks. Every process draws and corrupts the whole global batch, which is
cheap, and computes on its share of the micro-batches, so that a step is the same for any number of
processes but for the order of its sums.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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


def join_processes(device: torch.device, *, needs_group: bool = False) -> Processes:
    """This process's place among those that `torchrun` started; `ALONE` outside it.

    With `needs_group` there is a process group even for one process: DeepSpeed wants one, and would
    otherwise ask MPI for it. It needs no port: a store in memory does.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not needs_group:
        return ALONE
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if size > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return Processes(dist.get_rank(), dist.get_world_size())


def local_device(device: torch.device) -> torch.device:
    """The GPU that `torchrun` means for this process; any other device as it is."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    mine = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(mine)
    return mine
