"""Progress of a long pass over a corpus: a bar on a terminal, elsewhere a line at times."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_SECONDS_PER_LINE = 10.0


class Meter:
    """Shows text read, its rate, and the time left, which is judged by the share of the source.

    `size_bytes` is the size of the source, 0 if nobody knows it.
    """

    def __init__(self, title: str, size_bytes: int) -> None:
        self._title = title
        self._size_bytes = size_bytes
        self._num_documents = 0
        self._num_bytes = 0
        self._first_position: int | None = None
        self._begin = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=size_bytes or None,
            desc=title,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            if size_bytes
            else "{desc} {elapsed}{postfix}",
        )
        self.close = self._bar.close

    def update(self, num_documents: int, num_bytes: int, position_bytes: int) -> None:
        """So many more documents and bytes of text; the source is read up to `position_bytes`."""
        self._num_documents += num_documents
        self._num_bytes += num_bytes
        if self._first_position is None:  # after a restart the first part was only skipped
            self._first_position = position_bytes
        now = time.monotonic()
        rate = self._num_bytes / 1e6 / max(now - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{self._num_documents:,} documents, {rate:.1f} MB/s", False)
        self._bar.update(position_bytes - self._bar.n)
        if self._bar.disable and now - self._last_line >= _SECONDS_PER_LINE:
            self._last_line = now
            done = position_bytes - self._first_position
            left = (self._size_bytes - position_bytes) * (now - self._begin) / done if done else 0
            line = {
                "phase": self._title,
                "documents": self._num_documents,
                "text_mb": round(self._num_bytes / 1e6, 1),
                "mb_per_second": round(rate, 2),
                "eta_seconds": round(left) if self._size_bytes and done else None,
            }
            print(json.dumps(line), flush=True)


@contextmanager
def byte_meter(title: str, num_bytes: int) -> Iterator[Callable[[int], object]]:
    """Yield a function that reports the bytes of a transfer.

    On a terminal it is a progress bar; otherwise one line before the transfer on stderr, since
    stdout has the metrics of a training.
    """
    is_terminal = sys.stderr.isatty()
    if num_bytes and not is_terminal:
        print(f"{title} ({num_bytes / 1e6:,.1f} MB)", file=sys.stderr, flush=True)
    with tqdm(
        total=num_bytes,
        desc=title,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not (num_bytes and is_terminal),
    ) as bar:
        yield bar.update
