"""The retry policy: number of attempts, and backoff between them.

Storages and local reads retry transient errors through `retried`: four attempts. Which errors of an
S3 store are transient, `storage.s3_errors` decides; an attempt is up to two requests, since boto3
repeats one (`storage.s3.REQUEST_ATTEMPTS`). Background uploads (`checkpoints.uploader`) use
`backoff` until their deadline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

DELAYS_SECONDS: tuple[float, ...] = (1, 2, 4)
"""The longest pauses before the second, third and fourth attempt; drawn from the upper half."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Bounds of the backoff of a background task, which is retried until it succeeds."""


def retried(action: Callable[[], T], is_transient: Callable[[Exception], bool]) -> T:
    """Return what `action` returns; retry it after a transient error, with jittered backoff."""
    for delay in DELAYS_SECONDS:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(random.uniform(delay / 2, delay))  # noqa: S311 - jitter, not a secret
    return action()


def backoff() -> Iterator[float]:
    """Yield pauses without end: full jitter below a bound that doubles up to the longest."""
    bound = FIRST_PAUSE_SECONDS
    while True:
        yield random.uniform(0, bound)  # noqa: S311 - jitter, not a secret
        bound = min(2 * bound, LONGEST_PAUSE_SECONDS)
