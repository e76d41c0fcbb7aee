"""Sources of batches: functions of the position alone, read ahead by a thread.

A source has no state, so the data position of a checkpoint is one integer and seeking is O(1).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from smallbench.batch import Batch
from smallbench.objectives.masking import IntArray, micro_batches, step_generator

StepBatches = tuple[list[Batch], int]
"""The micro-batches of a step, on the host, and the position of the next step."""


class BatchSource(Protocol):
    """Returns the micro-batches of the step that begins at a position."""

    def read(self, position: int, fraction: float = 0.0) -> StepBatches:
        """Return the batches of the step at `position`.

        `fraction` is the completed part of the run, on which the batch size and the corruption
        depend.
        """
        ...


class CorruptedRows:
    """Pretraining's source: positions count samples of an endless shuffled stream.

    `take(start, count)` returns clean rows, and `corrupt(rows, generator, fraction)` makes of them
    a global batch of `batch_size(fraction)` rows, which is cut into micro-batches.
    """

    def __init__(
        self,
        take: Callable[[int, int], IntArray],
        corrupt: Callable[[IntArray, np.random.Generator, float], Batch],
        *,
        batch_size: Callable[[float], int],
        micro_batch_size: int,
        seed: int,
    ) -> None:
        self._take, self._corrupt, self._seed = take, corrupt, seed
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size

    def read(self, position: int, fraction: float = 0.0) -> StepBatches:
        """Return the micro-batches of the samples from `position` on."""
        count = self._batch_size(fraction)
        rows_BL = self._take(position, count)
        batch = self._corrupt(rows_BL, step_generator(self._seed, position), fraction)
        return micro_batches(batch, self._micro_batch_size), position + count


class TwoPhases:
    """The rows of `first`, and after `begin_fraction` of the run those of `then`.

    Both share one position: a stream can begin anywhere, and never ends.
    """

    def __init__(self, first: BatchSource, then: BatchSource, *, begin_fraction: float) -> None:
        self._first, self._then, self._begin_fraction = first, then, begin_fraction

    def read(self, position: int, fraction: float = 0.0) -> StepBatches:
        """Return the micro-batches of the phase that `fraction` is in."""
        source = self._first if fraction < self._begin_fraction else self._then
        return source.read(position, fraction)


class ReadAhead:
    """Prepares the next step's micro-batches in a thread while the current step computes."""

    def __init__(
        self, source: BatchSource, *, next_fraction: Callable[[], float], pin_memory: bool
    ) -> None:
        """`next_fraction` is asked during a read: the fraction that the next read will have."""
        self._source, self._next_fraction, self._pin_memory = source, next_fraction, pin_memory
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._next: tuple[tuple[int, float], Future[StepBatches]] | None = None

    def read(self, position: int, fraction: float = 0.0) -> StepBatches:
        """Return the source's answer; wait only if the thread is not done yet."""
        if self._next is None or self._next[0] != (position, fraction):
            self._submit(position, fraction)
        assert self._next is not None
        read, following = self._next[1].result()
        self._submit(following, self._next_fraction())
        return read, following

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, position: int, fraction: float) -> None:
        future = self._executor.submit(self._prepare, position, fraction)
        self._next = ((position, fraction), future)

    def _prepare(self, position: int, fraction: float) -> StepBatches:
        read, following = self._source.read(position, fraction)
        if self._pin_memory:
            read = [batch.pin_memory() for batch in read]
        return read, following
