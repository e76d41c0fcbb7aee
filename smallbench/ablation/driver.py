"""All runs of an ablation, one after the other: pretraining, then GLUE, then the next.

    OUT/VARIANT/seed-N/                 a run directory like any other
    OUT/VARIANT/seed-N/outcome.json     whether the pretraining has ended, and how
    OUT/VARIANT/seed-N/glue-…/          its fine-tuning runs
    OUT/ablation.json, .md, report.html written at the end

Stored results are reused, so the same command continues and ends with the same tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from smallbench import plugins
from smallbench.ablation.plan import PlannedRun, Variant
from smallbench.checkpoints.manifest import METRICS
from smallbench.checkpoints.record import RECORD_NAME, open_record
from smallbench.checkpoints.store import CheckpointStore
from smallbench.config import Location, digest, to_dict
from smallbench.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    DataError,
    DivergedError,
    ExitCode,
    InterruptedRunError,
    SmallbenchError,
    UnsavedError,
)
from smallbench.export.huggingface import as_export
from smallbench.files import read_json, write_json
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.encoder import PretrainedEncoder
from smallbench.glue.grid import GridRun as FinetuneRun
from smallbench.glue.grid import run_grid
from smallbench.glue.protocols import summarize
from smallbench.glue.readers import TaskData
from smallbench.pretraining.data import fit_to_data, open_data
from smallbench.pretraining.pretrain import pretrain
from smallbench.pretraining.record import record_of
from smallbench.pretraining.trial import try_plugins
from smallbench.stop import NEVER, Stop
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.config import AccountingConfig, resumable_keys
from smallbench.train.precision import choose_device, choose_precision

OUTCOME = "outcome.json"

AT_ONCE = (InterruptedRunError, UnsavedError, ConflictError, CredentialsError)
"""Errors that end the ablation; any other failure ends only its run."""


@dataclass(frozen=True)
class Finetuning:
    """The protocol of all runs: one learning rate, and the same seeds for every task."""

    tasks: tuple[TaskData, ...]
    learning_rate: float
    seeds: tuple[int, ...]
    config: FinetuneConfig

    @property
    def plan(self) -> list[FinetuneRun]:
        """The fine-tunings of one pretraining."""
        return [
            FinetuneRun(data.task.name, "dev", self.learning_rate, seed)
            for data in self.tasks
            for seed in self.seeds
        ]

    @property
    def folder(self) -> str:
        """Where they are stored in a run directory; another setting gets another folder."""
        settings = {**to_dict(self.config), "device": None}
        return f"glue-{digest(settings)[:8]}"


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of one planned run. Nothing in it depends on the clock."""

    variant: str
    seed: int
    status: str
    """`done`, `diverged` or `failed`."""
    reason: str = ""
    held_out_loss: float | None = None
    glue_mean: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    """Score of each task, × 100."""
    num_failed_finetunings: int = 0
    steps: int | None = None
    tokens: int | None = None
    train_flops: float | None = None
    exit_code: ExitCode = ExitCode.DONE
    """Of a failed run; not stored."""


class AblationFailedError(SmallbenchError):
    """Some runs failed; the others are done."""

    exit_code = ExitCode.UNAVAILABLE  # an instance has that of its first failure

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_variants(variants: Sequence[Variant], data: Path) -> None:
    """Try each variant on the corpus: its sizes, and a step of two rows if it is a plug-in.

    Raises `ConfigError` that names the variant.
    """
    corpus = open_data(data)
    for variant in variants:
        try:
            if variant.config.then.sequence_length is not None:
                raise ConfigError("a second phase (then.sequence_length) is not supported here")
            config = fit_to_data(variant.config, corpus)
            choose_precision(config.train.precision, choose_device(config.train.device))
            try_plugins(config, corpus.rows)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            raise ConfigError(f"variant {variant.name}: {sentence}") from error


def check_stored(runs: Sequence[PlannedRun], data: Path) -> None:
    """Raise `ConfigError` if a run directory holds a run of another configuration or corpus."""
    corpus = open_data(data)
    for run in runs:
        if not (run.run_dir / RECORD_NAME).exists():
            continue
        begun = bool(CheckpointStore(run.run_dir).steps()) or _ended(run) is not None
        try:
            open_record(
                run.run_dir,
                record_of(fit_to_data(run.config, corpus), corpus.rows, data),
                resumable=resumable_keys(run.config),
                has_checkpoints=begun,
            )
        except ConfigError as error:
            raise ConfigError(
                f"--out holds an ablation that this command cannot continue: {error}. Of 'ablate', "
                "choose another --out"
            ) from None


def run_all(
    runs: Sequence[PlannedRun],
    *,
    data: Path,
    finetuning: Finetuning | None,
    announce: Callable[[str], None] = lambda text: None,
    stop: Stop = NEVER,
) -> list[RunOutcome]:
    """Return the outcome of every run; stored runs are not repeated.

    A run that diverges or fails does not end the others. Raises `InterruptedRunError` if `stop`
    asks for it.
    """
    outcomes = []
    for number, run in enumerate(runs, 1):
        stop.raise_if_asked(f"the ablation was before run {number} of {len(runs)}")
        announce(f"{number}/{len(runs)} {run.name}")
        try:
            outcome = _outcome(run, data, finetuning, stop)
        except AT_ONCE:
            raise
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            print(f"{run.name} failed: {sentence}", file=sys.stderr, flush=True)
            code = ExitCode(getattr(error, "exit_code", ExitCode.CONFIG))
            outcome = RunOutcome(run.variant.name, run.seed, "failed", sentence, exit_code=code)
        outcomes.append(outcome)
    return outcomes


def raise_if_failed(outcomes: Sequence[RunOutcome]) -> None:
    """Raise `AblationFailedError` with the first failure's exit code if a run failed."""
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failures:
        first = failures[0]
        raise AblationFailedError(
            f"{len(failures)} of {len(outcomes)} runs failed; {first.variant} seed {first.seed}: "
            f"{first.reason}. The same command tries them again",
            first.exit_code,
        )


def _sentence(error: BaseException) -> str | None:
    """Return the message for a failure; None for a crash of this program."""
    if (text := plugins.explain(error)) is not None:
        return text
    if isinstance(error, SmallbenchError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name alone
        return "the GPU is out of memory; set a smaller --train.micro_batch_size"
    return None


def _ended(run: PlannedRun) -> dict[str, Any] | None:
    """Return how the pretraining ended; None if it has not."""
    path = run.run_dir / OUTCOME
    return read_json(path) if path.is_file() else None


def _outcome(run: PlannedRun, data: Path, finetuning: Finetuning | None, stop: Stop) -> RunOutcome:
    ended = _ended(run)
    if ended is None:
        ended = {"status": "done", "reason": ""}
        try:
            pretrain(
                run.config,
                data=data,
                run_dir=run.run_dir,
                accounting=AccountingConfig(energy="none"),
                stop=stop,
            )
        except DivergedError as error:
            print(f"{run.name} diverged: {error}", file=sys.stderr, flush=True)
            ended = {"status": "diverged", "reason": str(error)}
        write_json(run.run_dir / OUTCOME, ended)
    outcome = RunOutcome(run.variant.name, run.seed, ended["status"], ended["reason"])
    if outcome.status != "done":
        return outcome
    outcome = replace(outcome, **_numbers(run))
    if finetuning is None:
        return outcome
    return replace(outcome, **_glue(run, finetuning, stop))


def _numbers(run: PlannedRun) -> dict[str, Any]:
    """Return the last held-out loss, and the run's steps, tokens and FLOPs."""
    records = read_metrics(run.run_dir / METRICS)
    last = next((r for r in reversed(records) if r["event"] == "eval"), None)
    if last is None:
        raise DataError(f"{run.run_dir / METRICS} has no held-out loss; delete the run's folder")
    summary = read_json(run.run_dir / RECORD_NAME)["summary"]
    return {
        "held_out_loss": last["loss"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_flops": summary["train_flops"],
    }


def _glue(run: PlannedRun, finetuning: Finetuning, stop: Stop) -> dict[str, Any]:
    with as_export(Location(str(run.run_dir))) as model:
        results = run_grid(
            PretrainedEncoder(model, trust_remote_code=True),  # a run's code is its user's own
            finetuning.tasks,
            finetuning.config,
            plan=finetuning.plan,
            out=run.run_dir / finetuning.folder,
            stop=stop,
        )
    summary = summarize(results)
    return {
        "glue_mean": summary.mean_of_present,
        "tasks": {name: task.score for name, task in summary.tasks.items()},
        "num_failed_finetunings": sum(task.num_failed for task in summary.tasks.values()),
    }


def to_record(outcome: RunOutcome) -> dict[str, Any]:
    """Return an outcome as it is stored."""
    return {key: value for key, value in asdict(outcome).items() if key != "exit_code"}
