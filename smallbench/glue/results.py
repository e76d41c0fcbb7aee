"""Stored fine-tuning runs: the format that every table is computed from.

A run is one folder, `OUT/runs/TASK/lr-1e-04_epochs-3_seed-1/`:

- `dev.tsv` (for MNLI also `dev_mismatched.tsv`), and `test.tsv` where the data have it:
  `index<TAB>prediction`, a class name or a number with every digit, so that metrics can be
  recomputed exactly;
- `timing.json`: how long it took, and nothing else that differs when the run is repeated;
- `result.json`: settings, hashes of the data, metrics. Written last: its presence means that the
  run is complete.

A run that helps to choose a learning rate is named `choice_lr-…` and has `choice.tsv` instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench import config, files
from smallbench.errors import ConfigError, DataError, UnavailableError
from smallbench.glue.choice import CHOICE
from smallbench.glue.metrics import compute_metrics, is_failed_run, leaderboard_score
from smallbench.glue.task_data import TaskData
from smallbench.glue.tasks import OWN_TASKS, TASKS, Task, register_task, task_named

RESULT_FILE = "result.json"
TIMING_FILE = "timing.json"
FORMAT = "smallbench-glue-run-3"
HEADER = "index\tprediction"
TASK_FILE = "task.json"
_STORED = ("settings", "splits", "data_sha256", "unknown_share", "unofficial")
_TIMINGS = ("seconds", "examples_per_second")
_MODEL = ("random_init", "model_sha256", "files_sha256", "max_train_examples", "is_sample")
"""Settings that all runs of one model have in common."""


@dataclass(frozen=True)
class RunSettings:
    """Settings that identify a run. Two runs with equal settings are the same run."""

    task: str
    model: str
    """Directory or hub id of the encoder, as the tables name it."""
    model_sha256: str
    """Fingerprint of its weights; empty if they were initialized at random."""
    files_sha256: str
    """Fingerprint of the encoder's configuration, tokenizer and code."""
    num_parameters: int
    """Parameters of the encoder without a task's head."""
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int
    max_length: int
    weight_decay: float
    warmup_fraction: float
    clip_norm: float
    precision: str
    """Precision of the computation: `fp32`, `bf16` or `fp16`."""
    split: str = "dev"
    """Scored split: `dev`, or `choice`, a part of train that the run was not trained on."""
    max_train_examples: int | None = None
    """Limit of training rows; None: all rows, which every protocol requires."""
    is_sample: bool = False
    """Whether it was fine-tuned on generated sample tasks, not on GLUE."""
    random_init: bool = False
    """Whether the encoder's weights were initialized at random: a baseline without pretraining."""
    pooling: str | None = None
    """Pooling under the shared head; None: the model's own head."""

    def __post_init__(self) -> None:
        config.require(self.split in {"dev", CHOICE}, "split", self.split, f"dev or {CHOICE}")

    def differing(self, other: RunSettings) -> dict[str, tuple[Any, Any]]:
        """Return the settings that tell two runs apart, as key → (own, the other's).

        The same weights, or random ones of the same files, may have several names.
        """
        pairs = {key: (value, vars(other)[key]) for key, value in vars(self).items()}
        return {key: pair for key, pair in pairs.items() if key != "model" and pair[0] != pair[1]}

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Names of the splits that have metrics, the ranked one first."""
        return task_named(self.task).dev_splits if self.split == "dev" else (self.split,)


@dataclass(frozen=True)
class SplitResult:
    """Scores of one split: fractions and correlations, not yet × 100."""

    metrics: dict[str, float]
    num_examples: int
    failed: bool
    """Whether the run scores no better than the majority class (`metrics.is_failed_run`)."""


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    settings: RunSettings
    splits: dict[str, SplitResult]
    """Name of a scored split to its scores."""
    data_sha256: dict[str, str]
    """Split name to the hash of its rows (`Examples.sha256`)."""
    unofficial: tuple[str, ...]
    """How the data differ from the official rows (`TaskData.unofficial`)."""
    unknown_share: dict[str, float] = field(default_factory=dict)
    """Split name to the fraction of its text's tokens that the tokenizer did not know."""
    seconds: float | None = field(default=None, compare=False)
    """Wall-clock time of the fine-tuning."""
    examples_per_second: float | None = field(default=None, compare=False)
    """Training examples."""

    @property
    def score(self) -> float:
        """The cell of this run: the task's ranking metric on the scored split, × 100."""
        scores = self.splits[self.settings.split]
        return leaderboard_score(task_named(self.settings.task), scores.metrics)

    @property
    def failed(self) -> bool:
        """Whether the run learned nothing on the scored split."""
        return self.splits[self.settings.split].failed


def score_run(
    settings: RunSettings,
    data: TaskData,
    predictions: Mapping[str, NDArray[Any]],
    *,
    unknown_share: Mapping[str, float] | None = None,
    seconds: float | None = None,
    examples_per_second: float | None = None,
) -> RunResult:
    """Return the result of a run from its predictions: split name → [N] classes or scores."""
    task = data.task
    splits = {}
    for name in data.scored_splits:
        labels = data.splits[name].labels
        assert labels is not None
        metrics = compute_metrics(task, predictions[name], labels)
        score = metrics[task.ranking_metric]
        splits[name] = SplitResult(
            metrics=metrics,
            num_examples=len(labels),
            failed=is_failed_run(task, predictions[name], labels, score=score),
        )
    return RunResult(
        settings=settings,
        splits=splits,
        data_sha256=data.sha256,
        unknown_share=dict(unknown_share or {}),
        unofficial=data.unofficial,
        seconds=seconds,
        examples_per_second=examples_per_second,
    )


# ---- one run on disk


def run_directory(out: Path, settings: RunSettings) -> Path:
    """Return the folder of a run below `out`: `runs/cola/lr-1e-04_epochs-3_seed-1`."""
    return out / "runs" / settings.task / run_name(settings)


def run_name(settings: RunSettings) -> str:
    """Return the last part of that path, which is unique among the runs of a task."""
    mantissa, _, exponent = f"{settings.learning_rate:.6e}".partition("e")
    rate = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    kind = "" if settings.split == "dev" else f"{settings.split}_"
    return f"{kind}lr-{rate}_epochs-{settings.epochs}_seed-{settings.seed}"


def write_run(directory: Path, result: RunResult, predictions: Mapping[str, NDArray[Any]]) -> None:
    """Store a run: predictions (split name → [N] classes or scores) first, `result.json` last."""
    task = task_named(result.settings.task)
    # An older result must not vouch for new predictions while they are being written.
    (directory / RESULT_FILE).unlink(missing_ok=True)
    for split, values in predictions.items():
        known = np.asarray(values).tolist()
        names = task.label_names
        words = [names[int(v)] for v in known] if names else [repr(float(v)) for v in known]
        files.write_text(directory / f"{split}.tsv", predictions_text(words))
    if task.name in OWN_TASKS:  # a reader of the result does not need the plug-in
        files.write_json(directory / TASK_FILE, config.to_dict(task))
    timing = {name: getattr(result, name) for name in _TIMINGS}
    files.write_json(directory / TIMING_FILE, timing)
    _write_result(directory, result)


def _write_result(directory: Path, result: RunResult) -> None:
    content = config.to_dict(result)
    kept = {name: content[name] for name in _STORED}
    files.write_json(directory / RESULT_FILE, {"format": FORMAT, **kept})


def predictions_text(values: Iterable[str]) -> str:
    """Return predictions as a file of ours, or of a submission to GLUE's server."""
    return "\n".join([HEADER, *(f"{i}\t{value}" for i, value in enumerate(values))]) + "\n"


def read_run(directory: Path) -> RunResult:
    """Read one run's `result.json`; raises `DataError` naming the file if it is not one."""
    path = directory / RESULT_FILE
    try:
        content = json.loads(path.read_bytes())
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(f"format {found!r}, expected {FORMAT!r}")
        if (directory / TASK_FILE).is_file():
            register_task(config.from_dict(Task, files.read_json(directory / TASK_FILE)))
        timing = directory / TIMING_FILE
        return _result_from(content, files.read_json(timing) if timing.is_file() else {})
    except OSError as error:
        raise UnavailableError(f"Could not read {path}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not the result of a fine-tuning run that this version can read ({error}); "
            "use the version that wrote it, or delete its folder and repeat the fine-tuning"
        ) from None


def _result_from(content: Mapping[str, Any], timing: Mapping[str, Any]) -> RunResult:
    kept = {key: value for key, value in content.items() if key != "format"}
    seconds = {key: timing.get(key) for key in _TIMINGS}
    run = config.from_dict(RunResult, {**kept, **seconds})
    metrics = {*task_named(run.settings.task).metrics}
    if run.splits.keys() != {*run.settings.scored_splits}:
        raise ValueError(f"splits {', '.join(run.splits)}")
    for name, split in run.splits.items():
        if missing := metrics - split.metrics.keys():
            raise ValueError(f"{name} has no {missing.pop()}")
    return run


def find_run(
    directory: Path, settings: RunSettings, data: TaskData | None = None
) -> RunResult | None:
    """Return the finished run in `directory`, or None if there is none.

    A run of the same model under another name gets the name in `settings`. Raises `ConfigError` if
    the folder has a finished run with other settings (for example of another model) or, if `data`
    are given, on other data: a new run would overwrite it.
    """
    if not (directory / RESULT_FILE).is_file():
        return None
    run = read_run(directory)
    _require_equal(directory, run.settings, settings, (*_MODEL, *vars(settings)))
    if data is not None and run.data_sha256 != data.sha256:
        raise ConfigError(f"{directory} has a run on other data; choose another --out")
    current = replace(run, settings=replace(run.settings, model=settings.model))
    if current != run:
        _write_result(directory, current)
    return current


def require_one_model(out: Path, settings: RunSettings) -> None:
    """Raise `ConfigError` if `out` has a finished run of another model, or on other data.

    `settings` are those of a run that is wanted.
    """
    for path in sorted(out.glob(f"runs/*/*/{RESULT_FILE}")):
        _require_equal(path.parent, read_run(path.parent).settings, settings, _MODEL)


def _require_equal(
    directory: Path, found: RunSettings, expected: RunSettings, keys: Iterable[str]
) -> None:
    different = found.differing(expected)
    for key in (key for key in keys if key in different):
        old, new = different[key]
        models = ""
        if key == "model_sha256":
            models = f" (it is of {found.model}, not of {expected.model})"
        elif key == "files_sha256":
            models = " (equal weights, but another config.json, tokenizer or code)"
        raise ConfigError(
            f"{directory} has a run with {key}={old!r}, expected {new!r}{models}; choose "
            "another --out"
        )


def read_runs(out: Path) -> list[RunResult]:
    """Return every finished run below `out`, in the order of task and folder name.

    A folder without `result.json` was interrupted and does not count. Raises `DataError` if there
    are no runs, or if one is damaged, foreign or in another run's folder.
    """
    runs = []
    own = {path.parents[1].name for path in out.glob(f"runs/*/*/{TASK_FILE}")} - set(TASKS)
    for name in (*TASKS, *sorted(own)):
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
    """Return stored predictions, [N] classes or scores; raise `DataError` if damaged."""
    path = directory / f"{split}.tsv"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if lines[0] != HEADER or lines[-1] != "":
        raise DataError(f"{path} is truncated or not a predictions file (index<TAB>prediction)")
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


def group_runs(runs: Iterable[RunResult]) -> list[list[RunResult]]:
    """Group runs by model and amount of data, in order of appearance."""
    groups: list[list[RunResult]] = []
    for run in runs:
        for group in groups:
            if not any({*_MODEL} & one.settings.differing(run.settings).keys() for one in group):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def merge_runs(sources: Sequence[Path], out: Path) -> list[RunResult]:
    """Copy the finished runs below each of `sources` to `out`; return all runs of `out`.

    Raises `DataError` before anything is copied, if the runs are of different models or if one run
    exists twice with different content.
    """
    places = [*sources, *([out] if (out / "runs").is_dir() else [])]
    found: dict[Path, tuple[Path, dict[str, bytes]]] = {}
    everything = [(place, run) for place in places for run in read_runs(place)]
    groups = group_runs(run for _, run in everything)
    if len(groups) > 1:
        models = ", ".join(group[0].settings.model for group in groups)
        raise DataError(
            f"these runs are of different models or data: {models}; merge them into "
            "separate --out folders"
        )
    for place, run in everything:
        directory, target = run_directory(place, run.settings), run_directory(out, run.settings)
        content = {
            path.name: path.read_bytes()
            for path in sorted(directory.iterdir())
            if path.suffix in {".tsv", ".json"}
        }
        for name in run.settings.scored_splits:
            values = read_predictions(directory, task_named(run.settings.task), name)
            if len(values) != run.splits[name].num_examples:
                raise DataError(
                    f"{directory}/{name}.tsv has {len(values)} predictions, expected "
                    f"{run.splits[name].num_examples}; delete the folder and run it again"
                )
        first, known = found.setdefault(target, (directory, content))
        differing = [
            name
            for name in sorted({*known, *content} - {TIMING_FILE})
            if known.get(name) != content.get(name)
        ]
        if differing:
            raise DataError(
                f"{directory / differing[0]} and {first / differing[0]} are of the same run but "
                "differ; repeat the run on one machine and delete the other"
            )
    for target, (directory, content) in found.items():
        if directory != target:
            # The result last: its presence vouches for the rest.
            for name in sorted(content, key=lambda name: name == RESULT_FILE):
                files.write_bytes(target / name, content[name])
    return read_runs(out)
