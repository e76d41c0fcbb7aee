"""Read an untrusted file of predictions under limits: gzipped lines index<TAB>prediction."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import product, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.choice import CHOICE, MAX_ROWS
from smallbench.glue.tasks import Task
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.text import show

MAX_PREDICTIONS_BYTES = 1 << 20  # compressed; QQP's are about 100 kB
MAX_LINE_BYTES = 40  # 40429<TAB>not_duplicate, or a number with every digit
MAX_SCORE = 1_000_000
HEADER = b"index\tprediction"
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")


def most_rows(task: Task, split: str) -> int:
    """Return the limit of a split's rows: the official number, or the limit of a choice."""
    return MAX_ROWS if split == CHOICE else task.split(split).num_rows


def unpack(content: bytes, place: str, limit: int) -> bytes:
    """Return the content of a gzip file of one member, at most `limit` bytes."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(content, limit + 1)
    except zlib.error:
        raise Rejected("predictions", f"{place} is not a gzip file, or is damaged") from None
    if len(text) > limit:
        raise Rejected("predictions", f"{place} unpacks to over {limit:,} bytes")
    if not unpacker.eof:
        raise Rejected("predictions", f"{place} is truncated")
    if unpacker.unused_data:
        raise Rejected("predictions", f"{place} has data after its end")
    return text


def trailer(path: Path) -> bytes:
    """Return the last eight bytes of a gzip file: CRC-32 and length of its content."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Rejected("files", f"{show(path.name)}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(max(0, os.fstat(descriptor).st_size - 8))
        return stream.read(8)


def parse_predictions(content: bytes, place: str, task: Task, split: str) -> NDArray[Any]:
    """Return [N] classes or scores, one for each row of the official dev set, in order."""
    text = unpack(content, place, MAX_LINE_BYTES * (most_rows(task, split) + 1))
    first, *lines, last = text.split(b"\n") if b"\n" in text else (text, b"")
    if first != HEADER or last:
        raise Rejected("predictions", f"{place} is not a table of index<TAB>prediction")
    if task.label_names is not None:
        known = possible_lines(task, split)
        found = np.fromiter(map(known.get, lines, repeat(-1)), np.int32, len(lines))
        rows, classes = np.divmod(found, task.num_labels)
        if (rows == np.arange(len(lines))).all():
            return classes.astype(np.int8)
    return _parse_lines(lines, place, task)


@cache
def possible_lines(task: Task, split: str) -> dict[bytes, int]:
    """Return each valid line of predictions → row × classes + class.

    Looking up a line takes a tenth of the time of parsing it.
    """
    assert task.label_names is not None
    places = product(range(most_rows(task, split)), task.label_names)
    return {f"{row}\t{label}".encode(): number for number, (row, label) in enumerate(places)}


def _parse_lines(lines: Sequence[bytes], place: str, task: Task) -> NDArray[Any]:
    words = []
    for number, line in enumerate(lines):
        index, tab, word = line.partition(b"\t")
        if not tab or b"\t" in word:
            raise Rejected("predictions", f"{place} has a line that is not index<TAB>prediction")
        if index != str(number).encode():
            raise Rejected("predictions", f"{place}: indices are not 0, 1, 2, … in this order")
        words.append(word.decode("utf-8", "replace"))
    if task.label_names is not None:
        numbers = {label: number for number, label in enumerate(task.label_names)}
        unknown = set(words) - set(numbers)
        if unknown:
            raise Rejected(
                "predictions",
                f"{place}: {show(min(unknown))!r} is not a label of {task.name} "
                f"({', '.join(task.label_names)})",
            )
        return np.array([numbers[word] for word in words], dtype=np.int8)
    wrong = next((word for word in words if not NUMBER.fullmatch(word)), None)
    if wrong is not None:
        raise Rejected("predictions", f"{place}: {show(wrong)!r} is not a number as JSON writes it")
    scores = np.array(words, dtype=np.float64)
    if not (np.abs(scores) <= MAX_SCORE).all():
        raise Rejected("predictions", f"{place} has a score beyond ±{MAX_SCORE:,}")
    return scores
