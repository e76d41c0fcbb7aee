"""Where the trainer's batches come from: a function of the position alone, read ahead by a thread.

A source keeps no state, so the data position of a checkpoint is one integer and seeking is O(1).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallbench.batch import Batch
from smallbench.objectives.masking import step_generator

Rows = npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Gives the micro-batches of the step that begins at a position."""

    def read(self, position: int) -> tuple[list[Batch], int]:
        """The step's micro-batches, on the host, and the position of the next step."""
        ...


class CorruptedRows:
    """Pretraining's source: positions count samples of an endless shuffled stream.

    `take(start, count)` gives clean rows, `corrupt(rows, generator)` one global batch of them and
    `cut(batch, size)` its micro-batches.
    """

    def __init__(
        self,
        take: Callable[[int, int], Rows],
        corrupt: Callable[[Rows, np.random.Generator], Batch],
        cut: Callable[[Batch, int], list[Batch]],
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        self._take, self._corrupt, self._cut = take, corrupt, cut
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._seed = seed

    def read(self, position: int) -> tuple[list[Batch], int]:
        """The micro-batches of samples `position` to `position + global_batch_size`."""
        rows_BL = self._take(position, self._global_batch_size)
        batch = self._corrupt(rows_BL, step_generator(self._seed, position))
        return self._cut(batch, self._micro_batch_size), position + self._global_batch_size


class ReadAhead:
    """Prepares the next step's micro-batches in a thread while the current step computes."""

    def __init__(self, source: BatchSource, *, pin_memory: bool) -> None:
        self._source = source
        self._pin_memory = pin_memory
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._next: tuple[int, Future[tuple[list[Batch], int]]] | None = None

    def read(self, position: int) -> tuple[list[Batch], int]:
        """As the source's; waits only where the thread has not kept up."""
        if self._next is None or self._next[0] != position:
            self._next = (position, self._executor.submit(self._prepare, position))
        micro_batches, following = self._next[1].result()
        self._next = (following, self._executor.submit(self._prepare, following))
        return micro_batches, following

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, position: int) -> tuple[list[Batch], int]:
        micro_batches, following = self._source.read(position)
        if self._pin_memory:
            micro_batches = [batch.pin_memory() for batch in micro_batches]
        return micro_batches, following
