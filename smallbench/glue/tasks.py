"""The eight GLUE tasks as one table, which all task-specific code reads.

A row of `TASKS` adds a GLUE-style task. Sizes, fields and label order are those of the official
release and of `nyu-mll/glue` on the Hugging Face hub (Wang et al. 2018, arXiv 1804.07461).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from smallbench.config import require
from smallbench.errors import ConfigError, nearest
from smallbench.plugins import is_reference
from smallbench.registry import Registry


@dataclass(frozen=True)
class Split:
    """One split of a task: its files and the number of rows in the official release."""

    name: str
    """`train`, `dev`, `test`, and for MNLI `dev_mismatched`, `test_mismatched`, `test_ax`."""
    file: str
    hub: str
    num_rows: int
    submission: str | None = None
    """Name of the file in a submission to GLUE's server; test splits only."""
    folder: str | None = None
    """Folder in the official layout, if it is not the task's own."""
    hub_config: str | None = None
    """Configuration in `nyu-mll/glue`, if it is not the task's own."""

    @property
    def is_test(self) -> bool:
        """Whether the labels are hidden; they are never read, even if a source has them."""
        return self.submission is not None


@dataclass(frozen=True)
class Task:
    """One row of the table: names, columns, labels, metrics, splits and fine-tuning defaults."""

    name: str
    title: str
    column: str
    """Heading in the paper's table."""
    hub_texts: tuple[str, ...]
    tsv_texts: tuple[str, ...]
    tsv_label: str
    label_names: tuple[str, ...] | None
    """Class names in Hugging Face's order, or None for a regression. A label is an index of it."""
    ranking_metric: str
    further_metrics: tuple[str, ...]
    splits: tuple[Split, ...]
    default_epochs: int
    default_num_seeds: int
    names_in_files: bool = False
    """Whether TSV and submission files have the names of classes instead of 0 and 1."""
    headerless: tuple[str, ...] = ()
    """Columns of train and dev files without a header."""
    may_have_short_rows: bool = False
    """Whether the official files have rows broken by line breaks, which are skipped."""

    @property
    def directory(self) -> str:
        """Folder of this task in the official layout."""
        return self.title

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers (STS-B, 0 to 5), not classes."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """Width of the head: the number of classes, or 1 for a regression."""
        return 1 if self.label_names is None else len(self.label_names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every stored metric, the ranking one first."""
        return (self.ranking_metric, *self.further_metrics)

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled evaluation splits, the ranked one (`dev`) first."""
        return tuple(s.name for s in self.splits if s.name.startswith("dev"))

    @property
    def file_labels(self) -> tuple[str, ...] | None:
        """Spelling of class 0, 1, … in TSV and submission files."""
        if self.label_names is None or self.names_in_files:
            return self.label_names
        return tuple(str(number) for number in range(len(self.label_names)))

    def split(self, name: str) -> Split:
        """Return the split called `name`; raise `ConfigError` for an unknown one."""
        for split in self.splits:
            if split.name == name:
                return split
        known = [split.name for split in self.splits]
        raise ConfigError(f"unknown split {name!r} of {self.name}; {nearest(name, known)}")


def _splits(title: str, train: int, dev: int, test: int) -> tuple[Split, ...]:
    return (
        Split("train", "train.tsv", "train", train),
        Split("dev", "dev.tsv", "validation", dev),
        Split("test", "test.tsv", "test", test, submission=f"{title}.tsv"),
    )


def _task(
    name: str,
    title: str,
    texts: str,
    metrics: str,
    sizes: tuple[int, int, int] | tuple[Split, ...],
    *,
    label_names: str | None,
    column: str | None = None,
    tsv_texts: tuple[str, ...] | None = None,
    tsv_label: str = "label",
    is_large: bool = False,
    num_seeds: int = 5,
    **more: Any,
) -> Task:
    """Return a row of the table; lists are words. Epochs and numbers of seeds are robust-v1's."""
    first, *further = metrics.split()
    return Task(
        name=name,
        title=title,
        column=column or title,
        hub_texts=tuple(texts.split()),
        tsv_texts=tsv_texts or tuple(texts.split()),
        tsv_label=tsv_label,
        label_names=None if label_names is None else tuple(label_names.split()),
        ranking_metric=first,
        further_metrics=tuple(further),
        splits=sizes if isinstance(sizes[0], Split) else _splits(title, *sizes),
        default_epochs=3 if is_large else 10,
        default_num_seeds=num_seeds,
        **more,
    )


_TEXTS = "sentence1 sentence2"
_ROWS = (
    _task(
        "cola", "CoLA", "sentence", "matthews accuracy", (8_551, 1_043, 1_063),
        label_names="unacceptable acceptable", headerless=("source", "label", "mark", "sentence"),
    ),
    _task(
        "sst2", "SST-2", "sentence", "accuracy", (67_349, 872, 1_821),
        label_names="negative positive", column="SST", is_large=True,
    ),
    _task(
        "mrpc", "MRPC", _TEXTS, "accuracy f1", (3_668, 408, 1_725),
        label_names="not_equivalent equivalent", tsv_texts=("#1 String", "#2 String"),
        tsv_label="Quality",
    ),
    _task(
        "stsb", "STS-B", _TEXTS, "spearman pearson", (5_749, 1_500, 1_379),
        label_names=None, column="STS", tsv_label="score",
    ),
    _task(
        "qqp", "QQP", "question1 question2", "accuracy f1", (363_846, 40_430, 390_965),
        label_names="not_duplicate duplicate", tsv_label="is_duplicate", is_large=True, num_seeds=3,
        # Line breaks inside questions cut a few rows of the official train.tsv
        # (nyu-mll/GLUE-baselines#5); the hub's 363,846 rows are those without them.
        may_have_short_rows=True,
    ),
    _task(
        "mnli", "MNLI", "premise hypothesis", "accuracy",
        (
            Split("train", "train.tsv", "train", 392_702),
            Split("dev", "dev_matched.tsv", "validation_matched", 9_815),
            Split("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched", 9_832),
            Split("test", "test_matched.tsv", "test_matched", 9_796, "MNLI-m.tsv"),
            Split(
                "test_mismatched", "test_mismatched.tsv", "test_mismatched", 9_847, "MNLI-mm.tsv"
            ),
            # The diagnostic set: never scored here, predicted by the MNLI model for a submission.
            Split("test_ax", "AX.tsv", "test", 1_104, "AX.tsv", folder="AX", hub_config="ax"),
        ),
        label_names="entailment neutral contradiction", tsv_texts=("sentence1", "sentence2"),
        tsv_label="gold_label", is_large=True, num_seeds=3, names_in_files=True,
    ),
    _task(
        "qnli", "QNLI", "question sentence", "accuracy", (104_743, 5_463, 5_463),
        label_names="entailment not_entailment", is_large=True, names_in_files=True,
    ),
    _task(
        "rte", "RTE", _TEXTS, "accuracy", (2_490, 277, 3_000),
        label_names="entailment not_entailment", names_in_files=True,
    ),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
"""Task name to row, in the order of the paper's columns."""


NOT_MEASURED = {
    "wnli": "its dev set contradicts its train set, and the paper's average is over the others",
    "ax": "it is a diagnostic test set without training rows; the MNLI model predicts it",
}
"""Parts of GLUE that are not tasks here, and why."""


OWN_TASKS: dict[str, Task] = {}
"""A user's own tasks that this process has loaded, by name. Tables show them beside GLUE's tasks,
and no average includes them."""

_PLUGINS = Registry("task", {}, group="smallbench.tasks", base="smallbench.glue.tasks:Task")


def task_named(name: str) -> Task:
    """Return the task of that name, or a user's own by `FILE.py:NAME`.

    Raises `ConfigError` with the nearest known name for an unknown one.
    """
    if name in NOT_MEASURED:
        raise ConfigError(
            f"Task {name!r} is not measured: {NOT_MEASURED[name]}; expected one of: "
            f"{', '.join(TASKS)}"
        )
    known = {**TASKS, **OWN_TASKS}
    if name in known:
        return known[name]
    if not is_reference(name) and name not in _PLUGINS.installed():
        raise ConfigError(f"unknown task {name!r}; {nearest(name, known)}")
    return register_task(_PLUGINS[name])


def register_task(task: Task) -> Task:
    """Make a user's own task available by its name in this process."""
    is_plain = re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", task.name) is not None
    require(is_plain, "task", task.name, "a name of lower-case letters, digits, - and _")
    if task.name in TASKS or OWN_TASKS.get(task.name, task) != task:
        raise ConfigError(f"a task {task.name!r} exists already; choose another name")
    OWN_TASKS[task.name] = task
    return task
