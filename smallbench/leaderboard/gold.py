"""The gold labels of dev, and of the part of train that chooses the learning rate.

They are read from a folder in the official layout, or from the hub at its pinned revision. A dev
set that is not the official one (`glue.official`) is refused. Labels of a task without a pinned
hash are used and flagged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from smallbench import files
from smallbench.errors import DataError
from smallbench.glue.choice import CHOICE, choice_rows
from smallbench.glue.official import PINS, order_difference, split_difference
from smallbench.glue.task_data import (
    HUB,
    HUB_REVISION,
    SAMPLE_MARKER,
    Examples,
    load_task,
    read_tsv,
    require_folder,
)
from smallbench.glue.tasks import TASKS, Task

Labels = NDArray[Any]
"""[N] classes (integers) or scores (floats)."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The part of a task's train split that chooses the learning rate (`glue.choice`)."""

    sha256: str
    """Hash of the rows, in their order."""
    labels: Labels


@dataclass(frozen=True, eq=False)
class Gold:
    """Labels by task and dev split."""

    labels: Mapping[str, Mapping[str, Labels]]
    pinned: frozenset[str]
    """Tasks with labels that are known to be official."""
    is_sample: bool = False
    """Whether they are generated samples; scores on them are not GLUE scores."""
    source: str | None = None
    """Source of the rest of GLUE: a folder or `hub`."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """Task to the rows of train that choose a learning rate; only tasks that `with_choices` has
    read."""

    def has(self, task: str) -> bool:
        """Return whether predictions of this task can be scored."""
        return task in self.labels


NO_GOLD = Gold({}, frozenset())


def read_gold(source: str | Path) -> Gold:
    """Return the dev labels of every task in `source`: a folder in the official layout, or `hub`.

    Raises `DataError` if a dev split does not have the official rows in the official order, or if a
    folder has no task.
    """
    found: dict[str, Mapping[str, Examples]] = {}
    is_hub = str(source) == HUB
    if not is_hub:
        require_folder(Path(source))
    is_sample = (Path(source) / SAMPLE_MARKER).is_file()
    for name, task in TASKS.items():
        folder = Path(source) / task.directory
        splits = [task.split(split) for split in task.dev_splits]
        if is_hub:
            read = load_task(task, source).splits
            found[name] = {split.name: read[split.name] for split in splits}
        elif folder.is_dir():
            found[name] = {s.name: read_tsv(task, s, folder / s.file) for s in splits}
        for split in splits if name in found and not is_sample else ():
            examples = found[name][split.name]
            reason = split_difference(task, split, examples)
            if reason := reason or order_difference(task, split, examples.sha256):
                raise DataError(f"{source}: {reason}; download GLUE again")
    if not found:
        raise DataError(f"{source} has no GLUE task; expected the official layout: CoLA/dev.tsv, …")
    known = () if is_sample else found if is_hub else PINS
    labels = {
        name: {split: _labels(examples.labels) for split, examples in splits.items()}
        for name, splits in found.items()
    }
    pinned = frozenset(name for name in found if name in known)
    return Gold(labels, pinned, is_sample, source=str(source))


def with_choices(gold: Gold, tasks: Collection[str], *, cache: Path | None = None) -> Gold:
    """Return `gold` with the labels of the rows that chose the rates of these tasks, if available.

    Reading a large train split takes seconds, so `cache` keeps the result by the file's hash.
    """
    if gold.source is None:
        return gold
    choices = dict(gold.choices)
    for name in sorted({*tasks} - choices.keys()):
        task = TASKS[name]
        file = Path(gold.source) / task.directory / task.split("train").file
        if gold.source == HUB:
            key = f"{HUB}-{HUB_REVISION}"
        elif file.is_file():
            with file.open("rb") as stream:
                key = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            continue
        kept = None if cache is None else cache / f"choice-{name}-{key}.npz"
        choices[name] = (kept and _kept(kept)) or _read_choice(task, gold.source, file, kept)
    return replace(gold, choices=choices)


def _kept(path: Path) -> Choice | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Choice(str(stored["sha256"]), stored["labels"])
    except (OSError, ValueError, KeyError, BadZipFile):
        return None  # missing or damaged: read and replace it


def _read_choice(task: Task, source: str, file: Path, kept: Path | None) -> Choice:
    if source == HUB:
        train = load_task(task, source).splits["train"]
    else:
        train = read_tsv(task, task.split("train"), file)
    rows = train.take(choice_rows(train)[CHOICE], split=CHOICE)
    found = Choice(rows.sha256, _labels(rows.labels))
    if kept is not None:
        with files.atomic_writer(kept) as stream:
            np.savez(stream, sha256=np.array(found.sha256), labels=found.labels)
    return found


def _labels(labels: Labels | None) -> Labels:
    assert labels is not None, "a dev split has labels"
    return np.asarray(labels)
