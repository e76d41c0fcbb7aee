"""The part of train on which a learning rate is chosen, so that no dev set ever chooses anything.

A row is in it by the hash of its texts alone: neither the order of the file nor a seed moves it,
and rows with the same texts stay on the same side.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.errors import DataError
from smallbench.glue.readers import Examples, TaskData

CHOICE = "choice"
"""Name of the split: held out of `train`, scored in place of `dev`."""

# Protocol robust-v1: a tenth of train, at most 2,000 rows.
INVERSE_FRACTION = 10
MAX_ROWS = 2_000


def choice_rows(train: Examples) -> dict[str, NDArray[np.int64]]:
    """The rows of `train` that are trained on, and those that choose, by split name.

    Raises `DataError` where no row is left to choose.
    """
    seconds = train.second or ("",) * len(train)
    hashes = np.array([_hash(*texts) for texts in zip(train.first, seconds, strict=True)])
    # The lowest hashes; all copies of the first row that would be too many stay in train.
    bound = np.sort(hashes)[min(len(train) // INVERSE_FRACTION, MAX_ROWS)]
    chosen = hashes < bound
    if not chosen.any():
        raise DataError(
            f"{len(train)} training rows are too few to choose a learning rate on a tenth of them; "
            "give one with --learning_rate"
        )
    return {"train": np.flatnonzero(~chosen), CHOICE: np.flatnonzero(chosen)}


def choice_data(data: TaskData) -> TaskData:
    """`data` for a run that helps to choose: the rest of `train` to train on, `choice` to score."""
    train = data.splits["train"]
    splits = {name: train.take(rows, split=name) for name, rows in choice_rows(train).items()}
    return replace(data, splits=splits)


def _hash(*texts: str) -> Any:
    digest = hashlib.sha256(json.dumps(texts).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "big"))
