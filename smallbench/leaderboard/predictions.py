"""Read an untrusted file of predictions under limits: gzipped lines index<TAB>prediction."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
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
HEADER = b"index\tprediction\n"
FIRST_CLASS = 0x80  # not ASCII
NO_MARKS = bytes({*range(256)} - {9, 10})  # all but tabs and line breaks
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")


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


def parse_predictions(content: bytes, place: str, task: Task, split: str) -> NDArray[Any]:
    """Return [N] classes or scores, one for each row of the official dev set, in order."""
    most = MAX_ROWS if split == CHOICE else task.split(split).num_rows
    text = unpack(content, place, MAX_LINE_BYTES * (most + 1))
    if not text.startswith(HEADER) or not text.endswith(b"\n"):
        raise Rejected("predictions", f"{place} is not a table of index<TAB>prediction")
    if task.label_names is not None and (classes := _classes(text, task, most)) is not None:
        return classes
    return _parse_lines(text[len(HEADER) :], place, task)


def _classes(text: bytes, task: Task, most: int) -> NDArray[np.int8] | None:
    """Return the classes of a table without errors, else None.

    Each label becomes one byte that no text has. Then rows have known places, and the rest of the
    table is compared as a whole, which takes a tenth of the time of parsing lines.
    """
    num = text.count(b"\n") - 1
    if num > most or not text.isascii():
        return None
    assert task.label_names is not None
    for number, label in enumerate(task.label_names):
        text = text.replace(f"\t{label}\n".encode(), bytes((9, FIRST_CLASS + number, 10)))
    empty, places = _empty_table(num)
    found = np.frombuffer(text, np.uint8)
    if len(found) != len(empty):
        return None
    classes = found[places] - FIRST_CLASS
    rest = found.copy()
    rest[places] = FIRST_CLASS
    is_table = (rest == empty).all() and (classes < task.num_labels).all()
    return classes.astype(np.int8) if is_table else None


@lru_cache(maxsize=32)
def _empty_table(num: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the table of `num` rows of the first class, and the places of the classes."""
    rows = [b"%d\t%c\n" % (number, FIRST_CLASS) for number in range(num)]
    table = np.frombuffer(HEADER + b"".join(rows), np.uint8)
    return table, np.flatnonzero(table == FIRST_CLASS)


def _parse_lines(content: bytes, place: str, task: Task) -> NDArray[Any]:
    marks = content.translate(None, delete=NO_MARKS)
    if marks != b"\t\n" * (len(marks) // 2):
        raise Rejected("predictions", f"{place} has a line that is not index<TAB>prediction")
    cells = content.decode("utf-8", "replace").replace("\n", "\t").split("\t")[:-1]
    words = cells[1::2]
    if cells[::2] != list(map(str, range(len(words)))):
        raise Rejected("predictions", f"{place}: indices are not 0, 1, 2, … in this order")
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
    if not all(map(NUMBER.fullmatch, words)):
        wrong = next(word for word in words if not NUMBER.fullmatch(word))
        raise Rejected("predictions", f"{place}: {show(wrong)!r} is not a number as JSON writes it")
    scores = np.array(list(map(float, words)))
    if not (np.abs(scores) <= MAX_SCORE).all():
        raise Rejected("predictions", f"{place} has a score beyond ±{MAX_SCORE:,}")
    return scores
