"""Call a function of untrusted files in processes with limits of time and memory.

An untrusted file can stall its reader, fill the memory or crash the process; then only its own
result is lost. Processes are forked, so that they share earlier results. There is one for each
core, and it takes files until one exceeds a limit.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from smallbench.cores import available_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """Limits of one call."""

    seconds: float = 25.0
    """An ordinary entry takes a quarter of one; the worst legal one takes several."""
    memory_bytes: int = 512 << 20
    """Beyond the memory of this process."""


LIMITS = Limits()


@dataclass(frozen=True)
class Failure:
    """A call without a result."""

    kind: str
    """`limits` or `crash`."""
    reason: str


def call_each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    limits: Limits = LIMITS,
    num_workers: int | None = None,
) -> list[Result | Failure]:
    """Return `function` of each item, in order; items and results must be picklable.

    A call that raises is a `Failure` as well, and its traceback goes to stderr.
    """
    waiting = list(enumerate(items))[::-1]
    results: dict[int, Result | Failure] = {}
    busy: dict[int, _Worker] = {}
    idle: list[_Worker] = []
    workers: list[_Worker] = []
    num_workers = num_workers or available_cpus()
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                if not idle:
                    workers.append(_Worker(function, limits))
                    idle.append(workers[-1])
                number, item = waiting.pop()
                busy[number] = idle.pop()
                busy[number].give(item)
            first = min(worker.deadline for worker in busy.values())
            wait([w.connection for w in busy.values()], timeout=max(0.0, first - time.monotonic()))
            for number, worker in list(busy.items()):
                if worker.connection.poll() or time.monotonic() >= worker.deadline:
                    results[number] = worker.take()
                    del busy[number]
                    if isinstance(results[number], Failure):
                        worker.end()
                    else:
                        idle.append(worker)
    finally:
        for worker in workers:
            worker.end()
    return [results[number] for number in sorted(results)]


class _Worker:
    """A process that makes one call after the other until one fails."""

    def __init__(self, function: Callable[[Any], Any], limits: Limits) -> None:
        self._limits = limits
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, function, limits), daemon=True)
        self._process.start()
        other.close()
        self.deadline = 0.0

    def give(self, item: Any) -> None:
        self.deadline = time.monotonic() + self._limits.seconds
        with suppress(OSError):  # the process is dead; `take` reports it
            self.connection.send(item)

    def take(self) -> Any:
        """Return the result, or a `Failure` if none arrived in time."""
        if not self.connection.poll():
            return _exceeded(f"{self._limits.seconds:g} s")
        try:
            return self.connection.recv()
        except EOFError:  # it died
            self._process.join()
            code = self._process.exitcode or 0
            if code == -signal.SIGXCPU:
                return _exceeded(f"{self._limits.seconds:g} s of processor time")
            ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return Failure("limits", f"reading it was ended {ended}")

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _exceeded(what: str) -> Failure:
    return Failure("limits", f"reading it takes more than {what}")


def _work(connection: Connection, function: Callable[[Any], Any], limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    _lower(resource.RLIMIT_CORE, 0)
    if (size := _address_space()) is not None:
        _lower(resource.RLIMIT_AS, size + limits.memory_bytes)
    # The parent's objects are many: leave them alone, and collect this process's between calls.
    gc.freeze()
    gc.disable()
    parent = os.getppid()
    while True:
        while not connection.poll(1.0):
            if os.getppid() != parent:
                return
        try:
            item = connection.recv()
        except EOFError:
            return
        # Processor time too: nothing else ends this process if the parent is killed.
        _lower(resource.RLIMIT_CPU, int(time.process_time() + limits.seconds) + 1)
        try:
            result = function(item)
        except MemoryError:
            result = _exceeded(f"{limits.memory_bytes >> 20:,} MiB of memory")
        except Exception as error:
            traceback.print_exc()
            result = Failure("crash", f"reading it raised {type(error).__name__}: {error}")
        connection.send(result)
        del item, result
        gc.collect()


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard < 0 else min(value, hard), hard))


def _address_space() -> int | None:
    """Return the bytes that this process has mapped; None if the system does not report them."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()
