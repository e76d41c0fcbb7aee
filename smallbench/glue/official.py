"""The official rows of GLUE, and how the rows of a source differ from them.

A run is ranked only if it was trained and scored on the official rows. `tasks` has their number;
here are SHA-256 pins of their content. QQP, QNLI and the rest of MNLI have no pins yet, so only
their numbers of rows are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.tasks import Split, Task

if TYPE_CHECKING:
    from smallbench.glue.task_data import Examples


@dataclass(frozen=True)
class Pin:
    """Known content of one official split."""

    rows_sha256: str
    """From `rows_sha256`: equal for the same rows in any order."""
    ordered_sha256: str | None = None
    """`Examples.sha256` of a dev split: entries identify its rows by position."""


# Of the files with the MD5 sums that PaddleNLP lists for the official archives.
# Only a copy with its other columns blanked was available for MNLI's dev_matched.tsv, so its MD5
# differs.
PINS: Mapping[str, Mapping[str, Pin]] = {
    task: {split: Pin(*hashes) for split, hashes in splits.items()}
    for task, splits in json.loads(files(__package__).joinpath("official.json").read_text()).items()
}

TRAIN_ROWS_IN_DEV: Mapping[str, int] = {"cola": 16, "sst2": 0, "mrpc": 0, "stsb": 6, "rte": 0}
"""Rows of the official train split whose texts are also in dev."""

MAX_SHARE_IN_DEV = 0.02
"""The same for tasks without a known count, as a fraction of dev; CoLA has the most, 1.5 %."""


def rows_sha256(examples: Examples) -> str:
    """Return a SHA-256 of texts and labels that does not depend on the order of the rows."""
    rows = sorted(map(json.dumps, examples.rows()))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def official_differences(task: Task, splits: Mapping[str, Examples]) -> tuple[str, ...]:
    """Return how these splits differ from the official ones, one sentence each.

    The list is empty if they are equal. A missing test split is not a difference. The order of rows
    does not count.
    """
    found = [
        reason
        for split in task.splits
        if split.name in splits and (reason := split_difference(task, split, splits[split.name]))
    ]
    if "train" in splits:
        for name in task.dev_splits:
            if name in splits:
                found += _leak(task, splits["train"], splits[name])
    return tuple(found)


def split_difference(task: Task, split: Split, examples: Examples) -> str | None:
    """Return how one split differs from the official one, or None if it does not."""
    name, number = f"{task.title} {split.name}", len(examples)
    if number != split.num_rows:
        return f"{name} has {number:,} rows, the official split has {split.num_rows:,}"
    pin = PINS.get(task.name, {}).get(split.name)
    if pin and (found := rows_sha256(examples)) != pin.rows_sha256:
        return (
            f"{name} has the official number of rows but not the official content "
            f"(SHA-256 {found[:12]}…, expected {pin.rows_sha256[:12]}…)"
        )
    return None


def order_difference(task: Task, split: Split, sha256: str) -> str | None:
    """Return a sentence if `sha256` (`Examples.sha256`) shows another order of the rows."""
    pin = PINS.get(task.name, {}).get(split.name)
    if pin is None or pin.ordered_sha256 in (None, sha256):
        return None
    return f"{task.title} {split.name} does not have the official rows in the official order"


def rows_in(train: Examples, dev: Examples) -> NDArray[np.int64]:
    """Return the positions of the rows of `train` whose texts are also in `dev`.

    Case and the amount of white space do not count, nor do labels.
    """
    known = set(_folded(dev))
    found = [position for position, texts in enumerate(_folded(train)) if texts in known]
    return np.array(found, dtype=np.int64)


def _leak(task: Task, train: Examples, dev: Examples) -> list[str]:
    rows = rows_in(train, dev)
    official = TRAIN_ROWS_IN_DEV.get(task.name) if dev.split == "dev" else None
    allowed = MAX_SHARE_IN_DEV * len(dev) if official is None else official
    if len(rows) <= allowed:
        return []
    numbers = [f"{row + 1:,}" for row in rows]
    if len(numbers) > 6:
        numbers[3:-3] = ["…"]
    usual = "" if official is None else f", officially {official}"
    return [
        f"{len(rows):,} rows of {task.title} train are also in {dev.split}{usual} "
        f"(row {', '.join(numbers)} of train)"
    ]


def _folded(examples: Examples) -> Iterator[tuple[str, ...]]:
    for texts in examples.texts():
        yield tuple(" ".join(text.casefold().split()) for text in texts)
