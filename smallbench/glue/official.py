"""The official rows of GLUE, and how the rows of a source differ from them.

A run is ranked only if it was trained and scored on the official rows. `tasks` has their number;
here are SHA-256 pins of their content. QQP, QNLI and the rest of MNLI have no pins yet, so only
their numbers of rows are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.tasks import Split, Task

if TYPE_CHECKING:
    from smallbench.glue.readers import Examples


@dataclass(frozen=True)
class Pin:
    """What is known about the content of one official split."""

    rows_sha256: str
    """See `rows_sha256`: equal for the same rows in any order."""
    ordered_sha256: str | None = None
    """`Examples.sha256` of a dev split: entries name its rows by their position."""


# Of the files with the MD5 sums that PaddleNLP lists for the official archives.
# MNLI's dev_matched.tsv was at hand only with its other columns blanked, so its MD5 differs.
PINS: Mapping[str, Mapping[str, Pin]] = {
    "cola": {
        "train": Pin("761db53adcfbb9829d4a0c0ef7ef2581384d1de3ede08d76e19429fe28f600ac"),
        "dev": Pin(
            "257624508ed459b825baef95c1262ac7c8fae9b3064bc6224bec77d18e75de91",
            "5e542bc72d1096a23154b65ee1e80016214bc588934b8534ef03b04b9b20c13b",
        ),
        "test": Pin("815de65c3f09bde554c28483379946540f0978e782c591589bebf53c78da6a8c"),
    },
    "sst2": {
        "train": Pin("481e86b0b06c778f241a4236d04c4b6c3f3c02c98cea794ebb7d550ca8d88831"),
        "dev": Pin(
            "a667b6195cc4f02e8ea9a2eee6557afd5ca0a36d34d7a2606b4fa9452f272a64",
            "db7b6cad89e9da35b821f04a4c5e960e12b946f3b2514361784e9b1756bfe7de",
        ),
        "test": Pin("41b309d63808bc8e94c8616ab20c149285f6c30dda2de4c8ff68b41fc29d0a00"),
    },
    "mrpc": {
        "train": Pin("9e6007e4f4451e5b8feacf01fb4f2ec37b37a9461251d71485121fa2bb947ab9"),
        "dev": Pin(
            "4d46ed7d2ec72f7a3fa9ea07c5c56e7c3379505e23ee215c156408b0381540f3",
            "233a00d2c05c9bca7849f301e787fe3f85c7ea629e762c5c14087ef290fe7368",
        ),
        "test": Pin("5bc4a8d7b7f5655c2dc8d29d953a731ea711a8e5fcb9209932db11b485ff28a2"),
    },
    "stsb": {
        "train": Pin("cd5768451f4d5758247af6e61d1c05207f4b6c5351720e2251d8aae20d0dda66"),
        "dev": Pin(
            "d9c86708344e8d122636eba25627360963b1090b3dac38fce3828795b92cfc03",
            "f28459d693031eb727988a0080bd463a7e3555f838536a78352831cc15240437",
        ),
        "test": Pin("55a849dc5284382eeb9e59b282b0863441c3629c686705cd2122edf06f5a145e"),
    },
    "mnli": {
        "dev": Pin(
            "f38469c4edb78f9271ea55b662427ed951868891599e1507b62b6ff2d36f0ea0",
            "37dff473a4fea345ed4c86cb5295346af296d68203fb2419c821e3d7a5f6ece6",
        ),
    },
    "rte": {
        "train": Pin("cb1de22bdba1aba3df044d736d4e44dd891b1481a54aa1ccbb282a03961d8ef5"),
        "dev": Pin(
            "eb2f4171ed0de459e2d52fd709057a07622073d23cd3dd40f7d27ca1f451f4d6",
            "79baa908dc90e6f6cef22113aa1efbf733b56a9631ea1029cfa1ac7d75481ec5",
        ),
        "test": Pin("2ef0e59de5892482631900652a0daf29829fae318dde722c97ecd7067970e24a"),
    },
}

TRAIN_ROWS_IN_DEV: Mapping[str, int] = {"cola": 16, "sst2": 0, "mrpc": 0, "stsb": 6, "rte": 0}
"""Rows of the official train split whose texts are also in dev."""

MAX_SHARE_IN_DEV = 0.02
"""The same for tasks without a count, as a part of dev; the largest known is CoLA's 1.5 %."""


def rows_sha256(examples: Examples) -> str:
    """Return a SHA-256 of texts and labels that does not depend on the order of the rows."""
    columns: list[Iterable[Any]] = [*_texts(examples), _labels(examples)]
    rows = sorted(json.dumps(row) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def differences(task: Task, splits: Mapping[str, Examples]) -> tuple[str, ...]:
    """Return how these splits differ from the official ones, one sentence each; none if equal.

    A missing test split is not a difference. The order of rows does not count.
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
    """Return a sentence if `sha256` (`Examples.sha256`) shows another order than the official."""
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


def _texts(examples: Examples) -> list[tuple[str, ...]]:
    return [examples.first, *([] if examples.second is None else [examples.second])]


def _labels(examples: Examples) -> Iterator[int | str | None]:
    """Classes as numbers and scores with three decimals, as every source has them."""
    labels = [None] * len(examples) if examples.labels is None else examples.labels.tolist()
    return (f"{label:.3f}" if isinstance(label, float) else label for label in labels)


def _folded(examples: Examples) -> Iterator[tuple[str, ...]]:
    for texts in zip(*_texts(examples), strict=True):
        yield tuple(" ".join(text.casefold().split()) for text in texts)
