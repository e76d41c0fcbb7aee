"""All runs of an ablation, one after the other: pretraining, then GLUE, then the next.

Stored results are reused, so the same command continues and ends with the same tables. With a
storage, runs may be made by several processes, each on a machine of its own (see `remote`).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from smallbench import plugins
from smallbench.ablation.outcomes import OUTCOME, RunOutcome, ended, stored_outcome
from smallbench.ablation.plan import PlannedRun, Scoring, Variant
from smallbench.ablation.remote import fetch, finetunings_of, keep, storage_of
from smallbench.checkpoints.inspection import pull
from smallbench.checkpoints.record import LOCK_NAME, RECORD_NAME, holder_of
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import CheckpointStore
from smallbench.checkpoints.uploader import Uploader, report
from smallbench.config import Location
from smallbench.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    DivergedError,
    ExitCode,
    InterruptedRunError,
    SmallbenchError,
    UnavailableError,
    UnsavedError,
)
from smallbench.export.huggingface import as_export
from smallbench.files import exclusive_lock, write_json
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.grid import GridRun as FinetuneRun
from smallbench.glue.grid import run_grid
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results_storage import keep_results
from smallbench.glue.task_data import TaskData
from smallbench.pretraining.plugin_trial import try_plugins
from smallbench.pretraining.pretrain import pretrain
from smallbench.pretraining.run_data import fit_to_data, open_data
from smallbench.pretraining.run_record import open_run_record
from smallbench.stop import NEVER, Stop
from smallbench.storage.base import Storage, join
from smallbench.train.config import AccountingConfig, DurabilityConfig, PretrainConfig
from smallbench.train.precision import choose_device, choose_precision

AT_ONCE = (InterruptedRunError, UnsavedError, ConflictError, CredentialsError)
"""Errors that end the ablation; any other failure ends only its run."""


@dataclass(frozen=True)
class Finetuning:
    """GLUE of all runs, with its rows."""

    scoring: Scoring
    tasks: tuple[TaskData, ...]
    config: FinetuneConfig

    @property
    def plan(self) -> list[FinetuneRun]:
        """The fine-tunings of one pretraining."""
        return [
            FinetuneRun(task, "dev", self.scoring.learning_rate, seed)
            for task in self.scoring.tasks
            for seed in self.scoring.seeds
        ]

    @property
    def data_sha256(self) -> dict[str, dict[str, str]]:
        """Task → the hashes of its rows."""
        used = {data.task.name: data.first(self.config.max_train_examples) for data in self.tasks}
        return {name: data.sha256 for name, data in used.items()}


@dataclass(frozen=True)
class Training:
    """What the runs are made with."""

    configs: Mapping[str, PretrainConfig]
    """Variant → its configuration, without a seed."""
    data: Path
    finetuning: Finetuning | None = None
    durability: DurabilityConfig = field(default_factory=DurabilityConfig)

    @property
    def scoring(self) -> Scoring | None:
        """How GLUE is scored, if it is."""
        return None if self.finetuning is None else self.finetuning.scoring

    def config(self, run: PlannedRun) -> PretrainConfig:
        """Return the configuration of one run."""
        config = self.configs[run.variant]
        return replace(config, train=replace(config.train, seed=run.seed))

    def storage(self, run: PlannedRun) -> Storage | None:
        """Return the storage of one run, if the ablation has one."""
        url = self.durability.storage
        return None if url is None else storage_of(run, url, self.durability)

    def found(self, run: PlannedRun) -> RunOutcome | None:
        """Return the outcome of a run that is stored."""
        sha256 = {} if self.finetuning is None else self.finetuning.data_sha256
        return stored_outcome(run, self.scoring, sha256)


def check_variants(variants: Sequence[Variant], data: Path) -> None:
    """Try each variant on the corpus: its sizes, and a step of two rows if it is a plug-in.

    Raises `ConfigError` that names the variant; `UnavailableError` if this machine lacks something.
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
            kind = UnavailableError if isinstance(error, UnavailableError) else ConfigError
            raise kind(f"variant {variant.name}: {sentence}") from error


def fetch_stored(runs: Sequence[PlannedRun], training: Training) -> None:
    """Download the stored runs, and check that they are runs of this ablation.

    Raises `ConfigError` if a run directory holds a run of another configuration or corpus.
    """
    corpus = open_data(training.data)
    for run in runs:
        if (storage := training.storage(run)) is not None:
            fetch(run, storage, training.durability, training.scoring)
        if not (run.run_dir / RECORD_NAME).exists():
            continue
        begun = bool(CheckpointStore(run.run_dir).steps()) or ended(run) is not None
        config = training.config(run)
        try:
            open_run_record(
                run.run_dir,
                fit_to_data(config, corpus),
                corpus.rows,
                training.data,
                has_checkpoints=begun,
                allow_changed_code=training.durability.allow_changed_code,
            )
        except ConfigError as error:
            place = "--out" if storage is None else "--storage"
            raise ConfigError(
                f"{place} holds an ablation that this command cannot continue: {error}. Of "
                f"'ablate', choose another {place}"
            ) from None


def run_all(
    runs: Sequence[PlannedRun],
    training: Training,
    *,
    announce: Callable[[str], None] = lambda text: None,
    stop: Stop = NEVER,
) -> list[RunOutcome]:
    """Return the outcome of every run; stored runs are not repeated.

    A run that diverges or fails does not end the others. Raises `InterruptedRunError` if `stop`
    asks for it.
    """
    outcomes: list[RunOutcome] = []
    seconds: list[float] = []
    for number, run in enumerate(runs):
        stop.raise_if_asked(f"the ablation was before run {run.place}")
        left = mean(seconds) * (len(runs) - number) if seconds else 0.0
        announce(f"{run.place} {run.name}{f', about {rough_duration(left)} left' if left else ''}")
        start = time.monotonic()
        try:
            was_stored = training.found(run) is not None
            outcome = _outcome(run, training, stop)
            seconds += [] if was_stored else [time.monotonic() - start]
        except AT_ONCE:
            raise
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            print(f"{run.name} failed: {sentence}", file=sys.stderr, flush=True)
            code = ExitCode(getattr(error, "exit_code", ExitCode.CONFIG))
            outcome = RunOutcome(run.variant, run.seed, "failed", sentence, exit_code=code)
        outcomes.append(outcome)
    return outcomes


def rough_duration(seconds: float) -> str:
    """Return `1.6 hours`, in the unit that people would use."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _sentence(error: BaseException) -> str | None:
    if (text := plugins.explain(error)) is not None:
        return text
    if isinstance(error, SmallbenchError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name alone
        return "the GPU is out of memory; set a smaller --train.micro_batch_size"
    return None


def _outcome(run: PlannedRun, training: Training, stop: Stop) -> RunOutcome:
    storage, how = training.storage(run), ended(run)
    is_kept = storage is None or storage.num_bytes(OUTCOME) is not None
    # A run that ended without the storage only uploads its last checkpoint.
    if how is None or (how["status"] == "done" and not is_kept):
        _pretrain(run, training, stop)
    if storage is not None:
        keep(run, storage, training.durability, training.scoring)
    found, finetuning = training.found(run), training.finetuning
    if found is None and finetuning is not None:
        if storage is None:
            _score(run, finetuning, stop)
        else:
            _score_stored(run, storage, training.durability, finetuning, stop)
        found = training.found(run)
    assert found is not None
    return found


def _pretrain(run: PlannedRun, training: Training, stop: Stop) -> None:
    """Train, or continue, until the budget is used up; a divergence is an outcome, too."""
    how, durability = {"status": "done", "reason": ""}, training.durability
    if durability.storage is not None:  # a run is kept there under its directory's name
        folder = join(durability.storage, run.run_dir.parent.name)
        durability = replace(durability, storage=folder)
    try:
        pretrain(
            training.config(run),
            data=training.data,
            run_dir=run.run_dir,
            durability=durability,
            accounting=AccountingConfig(energy="none"),
            stop=stop,
        )
    except DivergedError as error:
        print(f"{run.name} diverged: {error}", file=sys.stderr, flush=True)
        how = {"status": "diverged", "reason": str(error)}
    write_json(run.run_dir / OUTCOME, how)


def _score_stored(
    run: PlannedRun,
    storage: Storage,
    durability: DurabilityConfig,
    finetuning: Finetuning,
    stop: Stop,
) -> None:
    """Score a run as the owner of its storage, which gets each result when it is there."""
    remote = RemoteRun(storage, lease_seconds=durability.lease_seconds)
    in_use = f"another process trains in {run.run_dir}; wait for it, or choose another --out"
    with exclusive_lock(run.run_dir / LOCK_NAME, in_use):
        holder = holder_of(run.run_dir)
    results = finetunings_of(storage, durability, finetuning.scoring)

    def on_stored(directory: Path) -> None:
        remote.lease.assert_owned()
        keep_results(results, run.run_dir / finetuning.scoring.folder, directory)

    remote.lease.claim(holder=holder, stop=stop, report=report)
    with Uploader(remote, Retention(), max_unsynced_seconds=math.inf):  # renews the lease
        trained = stored_outcome(run, None, {})
        assert trained is not None
        if max(CheckpointStore(run.run_dir).steps(), default=-1) < (trained.steps or 0):
            pull(storage, run.run_dir)  # another machine has trained it
        _score(run, finetuning, stop, on_stored)


def _score(
    run: PlannedRun,
    finetuning: Finetuning,
    stop: Stop,
    on_stored: Callable[[Path], None] = lambda directory: None,
) -> None:
    with as_export(Location(str(run.run_dir))) as model:
        run_grid(
            PretrainedEncoder(model, trust_remote_code=True),  # a run's code is its user's own
            finetuning.tasks,
            finetuning.config,
            plan=finetuning.plan,
            out=run.run_dir / finetuning.scoring.folder,
            on_stored=on_stored,
            stop=stop,
        )
