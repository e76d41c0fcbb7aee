"""Stored fine-tuning runs: the format that every table is computed from.

A run is one folder, `OUT/runs/TASK/lr-1e-04_epochs-3_seed-1/`:

- `dev.tsv` (for MNLI also `dev_mismatched.tsv`), optionally `test.tsv`: `index<TAB>prediction`, a
  class name or a number with every digit, so that metrics can be recomputed exactly;
- `result.json`: settings, hashes of the data, metrics. Written last: its presence means that the
  run is complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench import config, files
from smallbench.errors import ConfigError, DataError
from smallbench.glue.metrics import compute_metrics, is_failed_run, leaderboard_score
from smallbench.glue.readers import TaskData
from smallbench.glue.tasks import TASKS, Task, task_named

RESULT_FILE = "result.json"
FORMAT = "smallbench-glue-run-1"
NOTHING = "–"
"""What a table shows where there is no number."""


@dataclass(frozen=True)
class RunSettings:
    """What was run. Two runs with equal settings are the same run."""

    task: str
    model: str
    """Directory or hub id of the encoder, as the tables name it."""
    model_sha256: str
    """Fingerprint of its weights."""
    num_parameters: int
    """Of the encoder without a task's head."""
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int
    max_length: int
    weight_decay: float
    warmup_fraction: float
    clip_norm: float
    precision: str
    """What it ran in: `fp32`, `bf16` or `fp16`."""
    protocol: str = "single"
    """`single`: one learning rate, given by the user; declared names for everything else."""
    max_train_examples: int | None = None
    """Trained on no more than this many rows; None: on all, as every protocol demands."""
    is_sample: bool = False
    """Fine-tuned on generated stand-ins, not on GLUE."""
    random_init: bool = False
    """The encoder's weights were drawn at random: a baseline without pretraining."""


@dataclass(frozen=True)
class SplitResult:
    """Scores of one dev split: fractions and correlations, not yet × 100."""

    metrics: dict[str, float]
    num_examples: int
    failed: bool
    """No better than always answering the majority class (`metrics.is_failed_run`)."""


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    settings: RunSettings
    splits: dict[str, SplitResult]
    """Dev split name to its scores."""
    data_sha256: dict[str, str]
    """Split name to the hash of its rows (`Examples.sha256`)."""
    seconds: float
    """Wall time of the fine-tuning."""
    examples_per_second: float
    """Training examples."""

    @property
    def score(self) -> float:
        """The cell of this run: the task's ranking metric on `dev`, × 100."""
        return leaderboard_score(TASKS[self.settings.task], self.splits["dev"].metrics)


def score_run(
    settings: RunSettings,
    data: TaskData,
    predictions: Mapping[str, NDArray[Any]],
    *,
    seconds: float,
    examples_per_second: float,
) -> RunResult:
    """Compute the result of a run from its predictions: split name → [N] classes or scores."""
    task = data.task
    splits = {}
    for name in task.dev_splits:
        labels = data.splits[name].labels
        assert labels is not None, "a dev split has labels"
        splits[name] = SplitResult(
            metrics=compute_metrics(task, predictions[name], labels),
            num_examples=len(labels),
            failed=is_failed_run(task, predictions[name], labels),
        )
    return RunResult(
        settings=settings,
        splits=splits,
        data_sha256=data.sha256,
        seconds=seconds,
        examples_per_second=examples_per_second,
    )


# ---- one run on disk


def run_directory(out: Path, settings: RunSettings) -> Path:
    """The folder of a run below `out`: `runs/cola/lr-1e-04_epochs-3_seed-1`."""
    mantissa, _, exponent = f"{settings.learning_rate:.6e}".partition("e")
    rate = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    name = f"lr-{rate}_epochs-{settings.epochs}_seed-{settings.seed}"
    return out / "runs" / settings.task / name


def write_run(directory: Path, result: RunResult, predictions: Mapping[str, NDArray[Any]]) -> None:
    """Store a run: predictions (split name → [N] classes or scores) first, `result.json` last."""
    task = task_named(result.settings.task)
    # An older result must not vouch for the new predictions while they are being written.
    (directory / RESULT_FILE).unlink(missing_ok=True)
    for split, values in predictions.items():
        words = [_prediction_text(task, value) for value in np.asarray(values).tolist()]
        lines = ["index\tprediction", *(f"{i}\t{word}" for i, word in enumerate(words))]
        files.write_text(directory / f"{task.split(split).name}.tsv", "\n".join(lines) + "\n")
    content = {
        "format": FORMAT,
        "settings": config.to_dict(result.settings),
        "splits": {name: config.to_dict(split) for name, split in result.splits.items()},
        "data_sha256": result.data_sha256,
        "seconds": result.seconds,
        "examples_per_second": result.examples_per_second,
    }
    files.write_json(directory / RESULT_FILE, content)


def _prediction_text(task: Task, value: int | float) -> str:
    if task.label_names is not None:
        return task.label_names[int(value)]
    return repr(float(value))


def read_run(directory: Path) -> RunResult:
    """Read one run's `result.json`; raises `DataError` naming the file if it is not one."""
    path = directory / RESULT_FILE
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"no {FORMAT}")
        return _result_from(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path} is no result of a fine-tuning run ({reason}); delete its folder, then run "
            f"that fine-tuning again"
        ) from None


def _result_from(content: Mapping[str, Any]) -> RunResult:
    settings = config.from_dict(RunSettings, content["settings"], prefix="settings.")
    task = task_named(settings.task)
    splits = {}
    for name in task.dev_splits:
        part = content["splits"][name]
        metrics = {key: float(part["metrics"][key]) for key in task.metrics}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise ValueError(f"{name} has a metric that is no number")
        splits[name] = SplitResult(
            metrics=metrics,
            num_examples=config.read_value("num_examples", part["num_examples"], int),
            failed=config.read_value("failed", part["failed"], bool),
        )
    unknown = [*set(content["splits"]) - set(splits), *set(content) - _KEYS]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    return RunResult(
        settings=settings,
        splits=splits,
        data_sha256={str(name): str(sha) for name, sha in content["data_sha256"].items()},
        seconds=config.read_value("seconds", content["seconds"], float),
        examples_per_second=config.read_value(
            "examples_per_second", content["examples_per_second"], float
        ),
    )


_KEYS = {"format", "settings", "splits", "data_sha256", "seconds", "examples_per_second"}


def find_run(
    directory: Path, settings: RunSettings, *, data_sha256: Mapping[str, str] | None = None
) -> RunResult | None:
    """The finished run in `directory`, None where there is none.

    Raises `ConfigError` where the folder holds a finished run with other settings (say, of another
    model) or, if they are given, on other data: a new run would overwrite it.
    """
    if not (directory / RESULT_FILE).is_file():
        return None
    run = read_run(directory)
    different = config.differing_keys(config.to_dict(run.settings), config.to_dict(settings))
    if different:
        key, (old, new) = next(iter(different.items()))
        raise ConfigError(
            f"{directory} holds a run with {key}={old!r}, not {new!r}; choose another --out"
        )
    if data_sha256 is not None and run.data_sha256 != data_sha256:
        raise ConfigError(f"{directory} holds a run on other data; choose another --out")
    return run


def read_runs(out: Path) -> list[RunResult]:
    """Every finished run below `out`, in the order of task and folder name.

    A folder without `result.json` was interrupted and does not count. Raises `DataError` where
    there is no run at all, or where one is damaged, foreign or in another run's folder.
    """
    runs = []
    for name in TASKS:
        for path in sorted((out / "runs" / name).glob(f"*/{RESULT_FILE}")):
            run = read_run(path.parent)
            expected = run_directory(out, run.settings)
            if path.parent != expected:
                raise DataError(f"{path} is the result of {expected}; move it there or delete it")
            runs.append(run)
    if not runs:
        raise DataError(
            f"{out} has no finished runs (runs/TASK/…/{RESULT_FILE}); "
            f"expected the --out of 'smallbench finetune' or 'smallbench glue'"
        )
    return runs


def read_predictions(directory: Path, task: Task, split: str) -> NDArray[Any]:
    """The stored predictions of a split: [N] classes, or scores. Raises `DataError` if damaged."""
    path = directory / f"{split}.tsv"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if lines[0] != "index\tprediction" or lines[-1] != "":
        raise DataError(f"{path} is cut off or no predictions file (index<TAB>prediction)")
    values: list[int | float] = []
    for number, line in enumerate(lines[1:-1]):
        index, _, word = line.partition("\t")
        try:
            if index != str(number):
                raise ValueError
            values.append(task.label_names.index(word) if task.label_names else float(word))
        except ValueError:
            raise DataError(
                f"{path}, line {number + 2}: {line!r}, expected {number}<TAB>"
                f"{'|'.join(task.label_names) if task.label_names else 'a number'}"
            ) from None
    return np.array(values, dtype=np.int64 if task.label_names else np.float64)


def check_run(directory: Path, data: TaskData) -> RunResult:
    """Read a run and recompute its metrics from its stored predictions and `data`'s labels.

    Raises `DataError` where the data are not those of the run or a metric differs at all.
    """
    run = read_run(directory)
    task = data.task
    if run.settings.task != task.name:
        raise DataError(f"{directory} is a run of {run.settings.task}, not of {task.name}")
    predictions = {}
    for name in task.dev_splits:
        if run.data_sha256.get(name) != data.splits[name].sha256:
            raise DataError(f"{directory}: {name} was scored on other rows than {data.source} has")
        predictions[name] = read_predictions(directory, task, name)
    again = score_run(
        run.settings,
        data,
        predictions,
        seconds=run.seconds,
        examples_per_second=run.examples_per_second,
    )
    if again.splits != run.splits:
        raise DataError(f"{directory}: stored metrics are not those of its stored predictions")
    return run


# ---- many runs


@dataclass(frozen=True)
class TaskSummary:
    """Scores (× 100) of one task's runs, one run a seed."""

    task: str
    num_runs: int
    mean: float
    sd: float | None
    """Sample standard deviation over seeds; None for one run."""
    median: float
    minimum: float
    maximum: float
    num_failed: int


@dataclass(frozen=True)
class Summary:
    """One model's scores. All means are plain."""

    model: str
    model_sha256: str
    num_parameters: int
    protocol: str
    max_train_examples: int | None
    is_sample: bool
    random_init: bool
    tasks: dict[str, TaskSummary]
    """In the order of the paper's columns."""

    @property
    def average(self) -> float | None:
        """AVG, the mean over all eight tasks; None unless all are there."""
        return self.mean_of_present if len(self.tasks) == len(TASKS) else None

    @property
    def mean_of_present(self) -> float:
        """The mean over the tasks that are there. Comparable only between equal sets of tasks."""
        return fmean(task.mean for task in self.tasks.values())


def group_runs(runs: Iterable[RunResult]) -> list[list[RunResult]]:
    """Runs of one model under one protocol together, in order of appearance."""
    groups: dict[tuple[Any, ...], list[RunResult]] = {}
    for run in runs:
        s = run.settings
        model = (s.model, s.model_sha256, s.random_init)
        groups.setdefault((*model, s.protocol, s.max_train_examples, s.is_sample), []).append(run)
    return list(groups.values())


def summarize(runs: Sequence[RunResult]) -> Summary:
    """Mean and spread over seeds of one model's runs.

    Raises `DataError` for runs that are no repetitions of each other: two models, two settings or
    data sets of one task, or one seed twice. A mean over those would hide a choice.
    """
    groups = group_runs(runs)
    if len(groups) != 1:
        models = ", ".join(group[0].settings.model for group in groups)
        raise DataError(f"expected the runs of one model under one protocol, found: {models}")
    tasks = {}
    for name in TASKS:
        of_task = [run for run in runs if run.settings.task == name]
        if of_task:
            _check_repetitions(name, of_task)
            scores = [run.score for run in of_task]
            tasks[name] = TaskSummary(
                task=name,
                num_runs=len(scores),
                mean=fmean(scores),
                sd=stdev(scores) if len(scores) > 1 else None,
                median=median(scores),
                minimum=min(scores),
                maximum=max(scores),
                num_failed=sum(run.splits["dev"].failed for run in of_task),
            )
    settings = runs[0].settings
    return Summary(
        model=settings.model,
        model_sha256=settings.model_sha256,
        num_parameters=settings.num_parameters,
        protocol=settings.protocol,
        max_train_examples=settings.max_train_examples,
        is_sample=settings.is_sample,
        random_init=settings.random_init,
        tasks=tasks,
    )


def _check_repetitions(task: str, runs: Sequence[RunResult]) -> None:
    first = runs[0]
    seeds = set()
    for run in runs:
        same = replace(run.settings, seed=first.settings.seed)
        different = config.differing_keys(config.to_dict(first.settings), config.to_dict(same))
        if different:
            key, values = next(iter(different.items()))
            raise DataError(
                f"runs of {task} mix {key} {values[0]!r} and {values[1]!r}, so their mean is no "
                f"spread over seeds; keep each setting in an --out of its own"
            )
        if run.data_sha256 != first.data_sha256:
            raise DataError(f"runs of {task} were made on different data; keep them apart")
        if run.settings.seed in seeds:
            raise DataError(f"two runs of {task} have seed {run.settings.seed}")
        seeds.add(run.settings.seed)


def results_table(summary: Summary) -> str:
    """A model's scores as a Markdown table: spread over seeds for each task, then AVG."""

    def number(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.2f}"

    lines = [
        "| Task | Metric | Mean | SD | Median | Min | Max | Runs | Failed |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, s in summary.tasks.items():
        scores = (s.mean, s.sd, s.median, s.minimum, s.maximum)
        cells = [
            TASKS[name].title,
            TASKS[name].ranking_metric,
            *map(number, scores),
            str(s.num_runs),
            str(s.num_failed),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"AVG over all eight tasks: {number(summary.average)}"]
    if summary.average is None:
        missing = ", ".join(TASKS[name].title for name in TASKS if name not in summary.tasks)
        lines[-1] += (
            f" (missing: {missing}). Mean over the {len(summary.tasks)} present: "
            f"{summary.mean_of_present:.2f}"
        )
    if summary.is_sample:
        lines += ["", "*Sample*: scored on generated stand-ins, which say nothing about GLUE."]
    return "\n".join(lines) + "\n"
