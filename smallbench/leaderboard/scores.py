"""An entry's scores, computed from its predictions: the robust view and the paper's.

Both views use the same runs and are never ranked together. *robust*: the mean over the published
seeds of the entry's protocol at the learning rate chosen on a part of train. *paper*: the best dev
score of all trials, with their number and the expected maximum of five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Any, Literal

import numpy as np

from smallbench.glue.metrics import compute_metrics, is_failed_run
from smallbench.glue.protocols import PROTOCOLS
from smallbench.glue.tasks import TASKS, Task
from smallbench.leaderboard.entry import Finetune, StoredRun
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.gold import Gold, Labels
from smallbench.leaderboard.ranking import Failures, Scored, failure_rates, score_interval
from smallbench.leaderboard.statistics import (
    Floats,
    Interval,
    draw_scores,
    expected_maximum,
    interval,
    mean_of_runs,
)
from smallbench.leaderboard.tracks import protocol_of

ViewName = Literal["robust", "paper"]
VIEWS: tuple[ViewName, ...] = ("robust", "paper")
PAPER = "paper"
PAPER_TRIALS = 5
"""Number of trials of the expected maximum, which makes different numbers of trials comparable."""


@dataclass(frozen=True)
class RunScore:
    """Scores of one run on dev."""

    metrics: dict[str, float]
    """Every metric × 100; names of those of a further dev split end with the split's name."""
    failed: bool
    """Whether the run scores no better than the majority class (`metrics.is_failed_run`)."""


class RunScores:
    """Scores of a submission's runs, each computed at its first use."""

    def __init__(self, submission: Submission, gold: Gold) -> None:
        self.submission, self.gold = submission, gold
        self._known: dict[str, RunScore] = {}
        self._draws: dict[str, Floats] = {}

    def __getitem__(self, run: StoredRun) -> RunScore:
        path = run.predictions["dev"]
        if path not in self._known:
            self._known[path] = self._compute(run)
        return self._known[path]

    def answers(self, runs: Sequence[StoredRun]) -> Labels:
        """Return [S, N] the answers of runs of one task on dev."""
        return np.stack([self.submission.predictions[run.predictions["dev"]] for run in runs])

    def draws(self, runs: Sequence[StoredRun]) -> Floats:
        """Return [S, R] bootstrap scores of runs of one task, computed once for both views."""
        missing = [run for run in runs if run.predictions["dev"] not in self._draws]
        if missing:
            name = missing[0].task
            drawn = draw_scores(TASKS[name], self.answers(missing), self.gold.labels[name]["dev"])
            paths = [run.predictions["dev"] for run in missing]
            self._draws.update(zip(paths, drawn, strict=True))
        return np.stack([self._draws[run.predictions["dev"]] for run in runs])

    def _compute(self, run: StoredRun) -> RunScore:
        task, labels = TASKS[run.task], self.gold.labels[run.task]
        metrics = {}
        for split, path in run.predictions.items():
            values = self.submission.predictions[path]
            for name, value in compute_metrics(task, values, labels[split], quickly=True).items():
                metrics[name if split == "dev" else f"{name} {split}"] = 100 * value
        score = metrics[task.ranking_metric] / 100
        failed = is_failed_run(task, self.answers([run])[0], labels["dev"], score=score)
        return RunScore(metrics, failed)


@dataclass(frozen=True)
class TaskScore:
    """One cell: a score × 100 and its runs."""

    task: str
    score: float
    """The view's score: mean over seeds, or best."""
    interval: Interval
    runs: tuple[float, ...]
    """Each run's ranking metric × 100, in the order of seeds (or of trials)."""
    mean: float
    sd: float | None
    median: float
    minimum: float
    maximum: float
    num_failed: int
    metrics: dict[str, float]
    """`RunScore.metrics`: mean over seeds, or those of the best run."""
    learning_rates: tuple[float, ...]
    expected_maximum: float | None
    """Expected maximum of `PAPER_TRIALS` trials; only in the paper's view."""
    failure_cost: float = 0.0
    """Difference in points between the runs that learned and the majority class."""

    @property
    def num_runs(self) -> int:
        """Number of seeds, or of trials with predictions."""
        return len(self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Return its values, ready for JSON."""
        return {**vars(self), "interval": vars(self.interval)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TaskScore:
        """Return the score from a result of `as_dict` that was JSON."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        return cls(**{**values, "interval": Interval(**content["interval"])})


@dataclass(frozen=True, eq=False)
class View:
    """One entry's scores under one protocol."""

    name: ViewName
    protocol: str
    """A key of `PROTOCOLS`; entries of different protocols are never compared."""
    tasks: dict[str, TaskScore]
    """In the order of the paper's columns; tasks without predictions or gold labels are absent."""
    task_draws: Mapping[str, Floats] = field(repr=False)
    """Task to its [R] draws."""

    @cached_property
    def draws(self) -> Floats | None:
        """[R] draws of AVG, the mean of the protocol's tasks; None unless all have scores."""
        if not self.tasks.keys() >= {*PROTOCOLS[self.protocol].tasks}:
            return None
        average: Floats = np.stack(list(self.task_draws.values())).mean(axis=0)
        return average

    @property
    def average(self) -> float | None:
        """AVG."""
        return None if self.draws is None else fmean(t.score for t in self.tasks.values())

    def failures(self, task: str) -> Failures:
        """Failed runs of a task, at their cost to its score; none of the best of several."""
        found = self.tasks[task]
        if self.name != "robust":
            return Failures(0, 0, 0.0)
        return Failures(found.num_runs, found.num_failed, found.failure_cost)

    @cached_property
    def scored(self) -> Scored | None:
        """Input of the ranking; None without AVG."""
        if self.draws is None or self.average is None:
            return None
        tasks, failures = list(self.tasks.values()), map(self.failures, self.tasks)
        return Scored(
            score=self.average,
            draws=self.draws,
            failures=tuple(one._replace(cost=one.cost / len(tasks)) for one in failures),
        )

    @cached_property
    def interval(self) -> Interval | None:
        """Interval of AVG from this entry alone; a board uses all its entries."""
        scored = self.scored
        if scored is None:
            return None
        return score_interval(scored, failure_rates([scored], len(scored.draws)))


def _finetune(submission: Submission) -> Finetune:
    finetune = submission.entry.finetune
    assert finetune is not None, "the schema demands it of an entry with runs"
    return finetune


def tasks_of(submission: Submission) -> tuple[str, ...]:
    """Return the tasks that an entry's AVG needs."""
    protocol = protocol_of(_finetune(submission))
    return tuple(TASKS) if protocol is None else protocol.tasks


def unranked_reasons(submission: Submission) -> tuple[str, ...]:
    """Return how the runs deviate from the entry's protocol, in a few words each.

    Empty if they can be ranked. `protocols.departures` does the same for stored runs, which an
    entry does not have.
    """
    finetune = _finetune(submission)
    protocol = protocol_of(_finetune(submission))
    if protocol is None:
        return (f"protocol {finetune.protocol}",)
    found = [
        f"{name} {_word(getattr(finetune, name))}, not {_word(value)}"
        for name, value in protocol.fixed.items()
        if hasattr(finetune, name) and getattr(finetune, name) != value
    ]
    if tuple(sorted(finetune.learning_rates)) != protocol.learning_rates:
        found.append("another grid of learning rates")
    for name in dict.fromkeys(run.task for run in submission.runs):
        runs, task = _robust_runs(submission, name), TASKS[name]
        if name not in protocol.tasks:
            found.append(f"{name} is not among its tasks")
        elif name not in finetune.chosen:
            found.append(f"{name}: no learning rate was chosen on train")
        elif tuple(run.seed for run in runs) != protocol.seeds(task):
            seeds = ", ".join(str(run.seed) for run in runs) or "none"
            found.append(f"{name}: seeds {seeds} at the chosen rate, expected the published ones")
        elif {run.epochs for run in runs} != {protocol.epochs(task)}:
            found.append(f"{name}: epochs other than {protocol.epochs(task)}")
    return tuple(found)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _robust_runs(submission: Submission, task: str) -> list[StoredRun]:
    rate = _finetune(submission).chosen.get(task)
    runs = [run for run in submission.runs if run.task == task and run.learning_rate == rate]
    return sorted(runs, key=lambda run: run.seed)


def robust_view(scores: RunScores) -> View | None:
    """Return the ranking's view; None if the runs do not follow the entry's protocol."""
    if unranked_reasons(scores.submission):
        return None
    tasks = tasks_of(scores.submission)
    runs = {name: _robust_runs(scores.submission, name) for name in tasks}
    return _view("robust", scores, runs)


def paper_view(scores: RunScores) -> View | None:
    """Return the best of all trials; None for a protocol without all eight tasks."""
    if {*tasks_of(scores.submission)} != TASKS.keys():
        return None
    runs = {name: [r for r in scores.submission.runs if r.task == name] for name in TASKS}
    return _view("paper", scores, runs)


def _view(name: ViewName, scores: RunScores, runs: Mapping[str, Sequence[StoredRun]]) -> View:
    tasks: dict[str, TaskScore] = {}
    draws: dict[str, Floats] = {}
    for task, of_task in runs.items():
        if of_task and scores.gold.has(task):
            tasks[task], draws[task] = _score(name, task, of_task, scores)
    protocol = PAPER if name == "paper" else _finetune(scores.submission).protocol
    return View(name, protocol, tasks, draws)


def _score(
    view: ViewName, name: str, runs: Sequence[StoredRun], scores: RunScores
) -> tuple[TaskScore, Floats]:
    task = TASKS[name]
    cells = [scores[run].metrics[task.ranking_metric] for run in runs]
    counted = list(runs) if view == "robust" else [runs[int(np.argmax(cells))]]
    learned = [run for run in counted if not scores[run].failed] or counted
    draws = mean_of_runs(task, scores.draws(learned), scores.answers(learned))
    draws = draws.astype(np.float32)  # sufficient for a comparison, and half the memory
    all_draws = draws
    if len(learned) < len(counted):
        all_draws = mean_of_runs(task, scores.draws(counted), scores.answers(counted))
    metrics = {
        key: fmean(scores[run].metrics[key] for run in counted) for key in scores[runs[0]].metrics
    }
    score = TaskScore(
        task=name,
        score=metrics[task.ranking_metric],
        interval=interval(all_draws),
        runs=tuple(cells),
        mean=fmean(cells),
        sd=stdev(cells) if len(cells) > 1 else None,
        median=median(cells),
        minimum=min(cells),
        maximum=max(cells),
        num_failed=sum(scores[run].failed for run in runs),
        metrics=metrics,
        learning_rates=tuple(sorted({run.learning_rate for run in runs})),
        expected_maximum=expected_maximum(cells, PAPER_TRIALS) if view == "paper" else None,
        failure_cost=max(0.0, float(draws.mean()) - _majority_score(task, scores.gold)),
    )
    return score, draws


def _majority_score(task: Task, gold: Gold) -> float:
    if task.ranking_metric != "accuracy":
        return 0.0
    labels = gold.labels[task.name]["dev"]
    return 100.0 * float(np.bincount(labels).max() / len(labels))
