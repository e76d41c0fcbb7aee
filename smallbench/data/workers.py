"""A function over a stream in several processes: results in order, memory bounded."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from smallbench.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")

_TASKS_PER_WORKER = 2  # one in work, one waiting; more would only cost memory


def ordered_map(
    function: Callable[[T], R], tasks: Iterable[T], *, workers: int
) -> Generator[R, None, None]:
    """`map(function, tasks)` by `workers` processes; with one worker, in this process.

    `tasks` is only read as far as the work goes. `function` must be picklable. Raises
    `UnavailableError` when a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[R]] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_become_worker)
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= workers * _TASKS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a worker process was killed (out of memory?); run the same command again, "
            f"with fewer than --workers={workers}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _become_worker() -> None:
    # The parent alone answers Ctrl-C and SIGTERM, which reach the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # One thread a worker: the workers fill the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the parent: a killed parent closes no queue, and workers would wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
