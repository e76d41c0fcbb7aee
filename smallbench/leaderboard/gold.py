"""The dev sets' labels that predictions are scored against, pinned by hash.

Whoever validates brings GLUE along: a folder in the official layout, or the hub at its pinned
revision. Labels that are not the pinned ones score nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.errors import DataError
from smallbench.glue.readers import HUB, SAMPLE_MARKER, load_task, read_tsv
from smallbench.glue.tasks import TASKS, Task

Labels = NDArray[Any]
"""[N] classes (integers) or scores (floats)."""

# `labels_sha256` of the official release's files. Where there is none yet, the labels must come
# from the hub, whose pinned revision cannot change either; a folder's are then used and flagged.
PINNED: dict[str, dict[str, str]] = {
    "cola": {"dev": "20369fe0935b97759c5aebb275d8c5a5fe676291fa90a781a5d24ad80602be24"},
    "sst2": {"dev": "5bb31b0884cf92a3f169443b74fd360f516ac8f32bfffcb6225fd702035ab3d3"},
    "mrpc": {"dev": "38242d601ac36ad39fa7178b78009adad8286dfe180e825733c7d2661dce8fec"},
    "mnli": {
        "dev": "a86460adbf9b030335792e8efac4069c38bed3f6117875f224b71cf48f9b7e5a",
        "dev_mismatched": "5d071b48c3b1f00e0e331247497cb05788180f45d643e56499730e2ea892ca4b",
    },
}


@dataclass(frozen=True, eq=False)
class Gold:
    """Labels by task and dev split."""

    labels: Mapping[str, Mapping[str, Labels]]
    pinned: frozenset[str]
    """Tasks whose labels are known to be the official ones."""
    is_sample: bool = False
    """Whether they are of generated stand-ins; scores on them say nothing about GLUE."""

    def has(self, task: str) -> bool:
        """Whether predictions of this task can be scored."""
        return task in self.labels


NO_GOLD = Gold({}, frozenset())


def labels_sha256(task: Task, labels: Labels) -> str:
    """A fingerprint of one split's labels: classes or scores with three decimals, a line each."""
    pattern = "{:.3f}\n" if task.is_regression else "{}\n"
    text = "".join(map(pattern.format, labels.tolist()))
    return hashlib.sha256(text.encode()).hexdigest()


def read_gold(source: str | Path) -> Gold:
    """The dev labels of every task that `source` has: a folder in the official layout, or `hub`.

    Raises `DataError` where labels are not the pinned ones, or a folder has no task.
    """
    labels: dict[str, dict[str, Labels]] = {}
    pinned = set()
    is_sample = (Path(source) / SAMPLE_MARKER).is_file()
    for name, task in TASKS.items():
        if str(source) == HUB:
            splits = load_task(task, source).splits
            labels[name] = {s: _labels(splits[s].labels) for s in task.dev_splits}
        else:
            folder = Path(source) / task.directory
            if not folder.is_dir():
                continue
            labels[name] = {
                s: _labels(read_tsv(task, task.split(s), folder / task.split(s).file).labels)
                for s in task.dev_splits
            }
        if is_sample:
            continue
        for split, sha256 in PINNED.get(name, {}).items():
            found = labels_sha256(task, labels[name][split])
            if found != sha256:
                raise DataError(
                    f"{source}: the labels of {name}'s {split} are not the official ones "
                    f"(SHA-256 {found[:12]}…, expected {sha256[:12]}…); fetch GLUE again"
                )
        if name in PINNED or str(source) == HUB:
            pinned.add(name)
    if not labels:
        raise DataError(f"{source} has no GLUE task; expected the official layout: CoLA/dev.tsv, …")
    return Gold(labels, frozenset(pinned), is_sample)


def _labels(labels: Labels | None) -> Labels:
    assert labels is not None, "a dev split has labels"
    return np.asarray(labels)
