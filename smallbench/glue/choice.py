"""The part of train on which a learning rate is chosen, so that no dev set chooses anything.

The hash of a row's texts alone decides whether it belongs to this part. The order of the file and
the seed do not matter, and rows with equal texts stay on the same side.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.errors import DataError
from smallbench.glue.task_data import Examples, TaskData

CHOICE = "choice"
"""Name of the split that is held out of `train` and scored instead of `dev`."""

# Protocol robust-v1: a tenth of train, at most 2,000 rows.
INVERSE_FRACTION = 10
MAX_ROWS = 2_000


def choice_rows(train: Examples) -> dict[str, NDArray[np.int64]]:
    """Return the rows of `train` to train on and the rows that choose, by split name.

    Raises `DataError` if no row is left to choose.
    """
    seconds = train.second or ("",) * len(train)
    hashes = np.array([_hash(*texts) for texts in zip(train.first, seconds, strict=True)])
    # The lowest hashes; if the limit falls inside a group of equal rows, the group stays in train.
    bound = np.sort(hashes)[min(len(train) // INVERSE_FRACTION, MAX_ROWS)]
    chosen = hashes < bound
    if not chosen.any():
        raise DataError(
            f"{len(train)} training rows are too few to choose a learning rate on a tenth of them; "
            "give one with --learning_rate"
        )
    return {"train": np.flatnonzero(~chosen), CHOICE: np.flatnonzero(chosen)}


def choice_data(data: TaskData) -> TaskData:
    """Return `data` for a run that chooses: trained on the rest of `train`, scored on `choice`."""
    train = data.splits["train"]
    splits = {name: train.take(rows, split=name) for name, rows in choice_rows(train).items()}
    return replace(data, splits=splits)


def _hash(*texts: str) -> Any:
    digest = hashlib.sha256(json.dumps(texts).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "big"))
