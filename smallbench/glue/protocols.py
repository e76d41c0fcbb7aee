"""Protocols: which runs a score needs, and how it is computed from stored runs.

`robust-v1`: the learning rate is chosen on a part of train, then the published seeds are run with
it; the score is their mean. `tiny-v1`: the same for the track of small budgets, with five tasks,
higher rates, fewer epochs and mean pooling. `paper`: the best dev score of all trials, shown with
their number. Scores of different protocols are never ranked together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from statistics import fmean, median, stdev
from typing import Any

from smallbench.errors import ConfigError, DataError, nearest
from smallbench.glue.choice import CHOICE
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.results import RunResult, RunSettings, group_runs
from smallbench.glue.tasks import OWN_TASKS, TASKS, Task, task_named
from smallbench.templates import from_template

NOTHING = "–"
"""Cell of a table without a number."""

CHOICE_SEED = 0
"""Seed of the runs that choose a learning rate; not one of the published seeds."""


@dataclass(frozen=True)
class Protocol:
    """How a task's score is computed from its runs."""

    name: str
    score_is: str
    """How the score is computed, for the table's first line."""
    score: Callable[[Sequence[float]], float]
    chooses_rate: bool
    """Whether one learning rate is chosen first; otherwise each rate is tried with each seed."""
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4, 3e-4)
    published_seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """`RunSettings` that a ranked run must have."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks over which AVG is the mean."""
    own_epochs: Mapping[str, int] = field(default_factory=dict)
    """Number of epochs by task, for tasks that do not use their default."""

    def seeds(self, task: Task) -> tuple[int, ...]:
        """Return the published seeds of a task."""
        return self.published_seeds[: task.default_num_seeds]

    def epochs(self, task: Task) -> int:
        """Return the number of epochs of a ranked run on a task."""
        return self.own_epochs.get(task.name, task.default_epochs)

    def completed(self, config: FinetuneConfig, task: Task) -> FinetuneConfig:
        """Return `config` with this protocol's epochs and pooling where it sets none."""
        return replace(
            config,
            epochs=config.epochs or self.epochs(task),
            pooling=config.pooling or self.fixed.get("pooling"),
        )


_WHOLE = {"max_train_examples": None, "is_sample": False, "random_init": False}
SAMPLE_ROWS = "generated sample rows"
"""How `departures` calls `is_sample`."""
_RECIPE = {
    "batch_size": 32,
    "max_length": 128,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "clip_norm": 1.0,
    **_WHOLE,
}

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="robust-v1",
            score_is="mean over seeds",
            score=fmean,
            chooses_rate=True,
            fixed=_RECIPE | {"pooling": None},
        ),
        # The tasks whose official rows are few enough for two CPU cores. Masked language modelling
        # does not train the first token, so the classifier reads the mean over tokens.
        Protocol(
            name="tiny-v1",
            score_is="mean over three seeds, mean pooling",
            score=fmean,
            chooses_rate=True,
            learning_rates=(3e-4, 6e-4, 1e-3),
            published_seeds=(1, 2, 3),
            fixed=_RECIPE | {"pooling": "mean"},
            tasks=("cola", "sst2", "mrpc", "stsb", "rte"),
            own_epochs={"cola": 5, "sst2": 1, "mrpc": 5, "stsb": 5, "rte": 5},
        ),
        Protocol(
            name="paper",
            score_is="best dev score of all trials, chosen on dev itself",
            score=max,
            chooses_rate=False,
            fixed=_WHOLE | {"pooling": None},
        ),
    )
}
DEFAULT = "robust-v1"


def protocol_named(name: str) -> Protocol:
    """Return the protocol `name`; raise `ConfigError` for an unknown one."""
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def chosen_rate(choice: Sequence[RunResult]) -> float:
    """Return the learning rate of the best of these runs; the lowest one of a tie."""
    best = max(choice, key=lambda run: (run.score, -run.settings.learning_rate))
    return best.settings.learning_rate


def departures(protocol: Protocol, settings: Iterable[RunSettings]) -> tuple[str, ...]:
    """Return how these runs deviate from `protocol`, in a few words each; empty if ranked."""
    found: dict[str, list[str]] = {}

    def compare(key: str, value: Any, expected: Any) -> None:
        if value != expected:
            text = f"{key} {_text(value)}, not {_text(expected)}"
            found.setdefault(SAMPLE_ROWS if key == "is_sample" else text, []).append(name)

    ordered = sorted(settings, key=lambda s: [*TASKS, *OWN_TASKS].index(s.task))
    for name, group in groupby(ordered, key=lambda s: s.task):
        of_task = list(group)
        for one in of_task:
            for key, expected in protocol.fixed.items():
                compare(key, getattr(one, key), expected)
            if protocol.chooses_rate:
                compare("epochs", one.epochs, protocol.epochs(task_named(name)))
        if protocol.chooses_rate:
            choice = [s for s in of_task if s.split == CHOICE]
            rates = {s.learning_rate for s in choice or of_task}
            compare("learning_rate", tuple(sorted(rates)), protocol.learning_rates)
            seeds = {s.seed for s in of_task if s.split != CHOICE}
            compare("seeds", tuple(sorted(seeds)), protocol.seeds(task_named(name)))
            if {s.seed for s in choice} - {CHOICE_SEED}:
                found.setdefault("the learning rate was chosen with other seeds", []).append(name)
    num_tasks = len({s.task for s in ordered})
    return tuple(
        text if len(tasks := dict.fromkeys(names)) == num_tasks else f"{text} ({', '.join(tasks)})"
        for text, names in found.items()
    )


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "none"
    return "none" if value is None else str(value).lower()


# ---- views of stored runs


@dataclass(frozen=True)
class TaskSummary:
    """Scores (× 100) of one task's runs that count under a protocol."""

    task: str
    runs: tuple[RunResult, ...]
    score: float
    """The score under the protocol."""
    mean: float
    sd: float | None
    """Sample standard deviation over runs; None for one run."""
    median: float
    minimum: float
    maximum: float
    num_failed: int
    is_rate_chosen: bool
    """Whether the learning rate was chosen on a part of train."""

    @property
    def num_runs(self) -> int:
        """Number of seeds, or of trials."""
        return len(self.runs)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates of the runs, each once."""
        return tuple(sorted({run.settings.learning_rate for run in self.runs}))

    @property
    def best(self) -> RunResult:
        """The run with the highest dev score; of a tie, the one with the lowest seed and rate."""
        return max(
            self.runs, key=lambda run: (run.score, -run.settings.seed, -run.settings.learning_rate)
        )


@dataclass(frozen=True)
class Summary:
    """One model's scores under one protocol. Means are unweighted."""

    model: str
    model_sha256: str
    num_parameters: int
    protocol: str
    max_train_examples: int | None
    is_sample: bool
    random_init: bool
    departures: tuple[str, ...]
    """Why the model is not ranked; empty if its tasks allow a rank."""
    unofficial: tuple[str, ...]
    """Those reasons that concern unofficial data."""
    tasks: dict[str, TaskSummary]
    """In the order of the paper's columns."""

    @property
    def average(self) -> float | None:
        """AVG, the mean over all tasks of the protocol; None unless all have scores."""
        needed = PROTOCOLS[self.protocol].tasks
        return self.mean_of_present if self.tasks.keys() >= {*needed} else None

    @property
    def mean_of_present(self) -> float:
        """The mean over the GLUE tasks that have scores, or over a user's own tasks if none has.

        Comparable only between equal sets of tasks.
        """
        found = [task.score for name, task in self.tasks.items() if name in TASKS]
        return fmean(found or [task.score for task in self.tasks.values()])


def summarize(runs: Sequence[RunResult], protocol: str = DEFAULT) -> Summary:
    """Return one model's scores from its stored runs.

    Raises `DataError` for runs that are not repetitions of each other: two models, two settings or
    data sets of one task, or one seed twice. A score over those would hide a choice.
    """
    groups = group_runs(runs)
    if len(groups) != 1:
        models = ", ".join(group[0].settings.model for group in groups)
        raise DataError(f"expected the runs of one model on the same data, found: {models}")
    view = protocol_named(protocol)
    tasks: dict[str, TaskSummary] = {}
    counting: list[RunResult] = []
    for name in (*view.tasks, *OWN_TASKS):
        of_task = [run for run in runs if run.settings.task == name]
        choice = [r for r in of_task if r.settings.split == CHOICE and view.chooses_rate]
        dev = [run for run in of_task if run.settings.split != CHOICE]
        if choice:
            _check_repetitions(name, choice)
            rate = chosen_rate(choice)
            dev = [run for run in dev if run.settings.learning_rate == rate]
        if dev:
            _check_repetitions(name, dev)
            _check_alike(name, [*choice, *dev], but=("split", "learning_rate", "seed"))
            if view.chooses_rate:
                _check_alike(name, dev, but=("seed",))
            tasks[name] = _task_summary(name, dev, view, is_rate_chosen=bool(choice))
            counting += [*choice, *dev]
    if not tasks:
        raise DataError("no seed of any task has been run yet; run the same command to continue")
    settings = runs[0].settings
    unofficial = tuple(dict.fromkeys(reason for run in counting for reason in run.unofficial))
    return Summary(
        model=settings.model,
        model_sha256=settings.model_sha256,
        num_parameters=settings.num_parameters,
        protocol=protocol,
        max_train_examples=settings.max_train_examples,
        is_sample=settings.is_sample,
        random_init=settings.random_init,
        departures=(*departures(view, [run.settings for run in counting]), *unofficial),
        unofficial=unofficial,
        tasks=tasks,
    )


def _task_summary(
    name: str, runs: Sequence[RunResult], protocol: Protocol, *, is_rate_chosen: bool
) -> TaskSummary:
    scores = [run.score for run in runs]
    return TaskSummary(
        task=name,
        runs=tuple(runs),
        score=protocol.score(scores),
        mean=fmean(scores),
        sd=stdev(scores) if len(scores) > 1 else None,
        median=median(scores),
        minimum=min(scores),
        maximum=max(scores),
        num_failed=sum(run.failed for run in runs),
        is_rate_chosen=is_rate_chosen,
    )


def _check_alike(task: str, runs: Sequence[RunResult], *, but: tuple[str, ...]) -> None:
    for run in runs:
        for key, (one, other) in runs[0].settings.differing(run.settings).items():
            if key not in but:
                remedy = "use a separate --out for each setting"
                if key == "learning_rate":
                    remedy = "--protocol=paper shows the best of them"
                raise DataError(
                    f"runs of {task} mix {key} {one!r} and {other!r}, so they are not "
                    f"repetitions with other seeds; {remedy}"
                )


def _check_repetitions(task: str, runs: Sequence[RunResult]) -> None:
    seen = set()
    for run in runs:
        if run.data_sha256 != runs[0].data_sha256:
            raise DataError(f"runs of {task} have different data; use one --out for each")
        trial = (run.settings.learning_rate, run.settings.seed)
        if trial in seen:
            raise DataError(f"two runs of {task} have seed {trial[1]} and learning rate {trial[0]}")
        seen.add(trial)


def results_table(summary: Summary) -> str:
    """Return a model's scores as a Markdown table: statistics over runs for each task, then AVG."""
    protocol, tasks = PROTOCOLS[summary.protocol], summary.tasks
    return from_template(
        "smallbench.glue",
        "results.md",
        summary=summary,
        protocol=protocol,
        tasks=[(task_named(name), task) for name, task in tasks.items()],
        not_chosen=[task_named(name).title for name in tasks if not tasks[name].is_rate_chosen],
        missing=[TASKS[name].title for name in protocol.tasks if name not in tasks],
        num_present=len(tasks.keys() & TASKS.keys()) or len(tasks),
        number=lambda value: NOTHING if value is None else f"{value:.2f}",
    )


def side_by_side(columns: Mapping[str, Sequence[RunResult]]) -> str:
    """Return a table for a terminal: a row for each task, a column for each model's runs."""
    width = max(map(len, columns))
    lines = [f"{'task':<8}{'metric':<10}" + "".join(f"  {name:>{width}}" for name in columns)]
    for runs in zip(*columns.values(), strict=True):
        task = task_named(runs[0].settings.task)
        cells = (f"  {run.score:>{width}.1f}{'*' if run.failed else ' '}" for run in runs)
        lines.append(f"{task.title:<8}{task.ranking_metric:<10}" + "".join(cells).rstrip())
    if any(run.failed for runs in columns.values() for run in runs):
        lines.append("* no better than always answering the majority class")
    return "\n".join(lines)
