"""A pretraining run, from a prepared corpus and a configuration to a run directory.

    RUN_DIR/run.json        configuration, corpus, code and machine of each attempt
    RUN_DIR/metrics.jsonl   every number, by step
    RUN_DIR/loss.png        the loss curve
    RUN_DIR/tokenizer/      the corpus's tokenizer, for the export
    RUN_DIR/checkpoints/, RUN_DIR/commits/   see `checkpoints.store`
    RUN_DIR/heartbeat.json                   step and time, about once a second

The same command continues an interrupted run. With the same device, precision, thread count and
torch it ends with the weights, bit for bit, that the run would have had without the interruption.
(On a GPU, rows over 128 tokens need `train.deterministic` for that.)
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from smallbench.checkpoints.manifest import METRICS, step_name
from smallbench.checkpoints.record import RECORD_NAME, write_summary
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.store import Checkpoint, CheckpointStore, restore_metrics
from smallbench.checkpoints.uploader import Uploader, report
from smallbench.config import digest
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import entropy_of_counts, verify_once
from smallbench.errors import InterruptedRunError, SmallbenchError, UnavailableError
from smallbench.files import read_json
from smallbench.models.encoder import checkpoint_activations
from smallbench.objectives.base import PretrainObjective
from smallbench.objectives.masking import micro_batches, step_generator
from smallbench.planning.compare import ComparePlan
from smallbench.planning.planner import UnplannedError, smaller
from smallbench.plugins import nothing_left
from smallbench.pretraining.callbacks import (
    Heartbeat,
    HeldOutLoss,
    LogTraining,
    of_steps,
    undecayed,
)
from smallbench.pretraining.initial_weights import load_initial_weights
from smallbench.pretraining.machine import Machine, asked_rows, choose_machine, choose_num_rows
from smallbench.pretraining.plugin_trial import try_plugins
from smallbench.pretraining.run_data import RunData, batches_of, fit_to_data, open_data
from smallbench.pretraining.run_storage import Resume, open_run_storage
from smallbench.pretraining.saving import SaveCheckpoints, WaitForUploads
from smallbench.pretraining.usage import UsageMeter, open_meter, summary
from smallbench.stop import NEVER, Stop
from smallbench.storage.base import join
from smallbench.tracking.base import Tracker
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.console import Console
from smallbench.tracking.jsonl import MetricsFile
from smallbench.tracking.plot import plot_loss
from smallbench.tracking.wandb import WandbRun, views_of_run
from smallbench.train.batch_sources import ReadAhead
from smallbench.train.budget import Progress
from smallbench.train.build import budget_of, build_objective, learning_rate_of, vocabulary_of
from smallbench.train.config import AccountingConfig, DurabilityConfig, PretrainConfig
from smallbench.train.determinism import deterministic
from smallbench.train.engine import Engine, build_engine
from smallbench.train.memory import MemoryExhaustedError, PeakMeter
from smallbench.train.precision import matrix_peak_flops
from smallbench.train.trainer import Callback, Trainer

HELD_OUT_SEED = 0
"""Seed of the choice and corruption of held-out rows: the same in every run, to compare them."""


@dataclass(frozen=True)
class Run:
    """What every attempt of this process shares."""

    config: PretrainConfig
    corpus: RunData
    machine: Machine
    store: CheckpointStore
    uploader: Uploader | None
    durability: DurabilityConfig
    accounting: AccountingConfig
    tracking: TrackerConfig
    shows_plan: bool
    stop: Stop

    @property
    def run_dir(self) -> Path:
        """The directory that the run is kept in."""
        return self.store.run_dir


def pretrain(
    config: PretrainConfig,
    *,
    data: Path,
    run_dir: Path,
    then_data: Path | None = None,
    resume: Resume = "allow",
    durability: DurabilityConfig | None = None,
    accounting: AccountingConfig | None = None,
    tracking: TrackerConfig | None = None,
    shows_plan: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Train `config` on the prepared corpus `data`, in `run_dir`, until its budget is used up.

    `then_data` has the longer rows of a second phase. With `durability.storage` the run is kept
    there too, and continues from there if `run_dir` is empty. `shows_plan` takes seconds to plan
    what will be measured, and prints both. Raises `InterruptedRunError` after a committed
    checkpoint, `UnsavedError` if the time was too short for one, `ConfigError` if the run directory
    holds another run, `ConflictError` if another process trains in it.
    """
    durability = durability or DurabilityConfig()
    tracking, accounting = tracking or TrackerConfig(), accounting or AccountingConfig()
    # 1. The data, and what the configuration leaves to it.
    corpus = open_data(data, then_data)
    config = fit_to_data(config, corpus)
    try_plugins(config, corpus.rows)
    # 2. The device, the engine, the other processes.
    machine = choose_machine(config, stop)
    with ExitStack() as stack:
        stack.enter_context(
            nothing_left(run_dir, is_kept=lambda: any(run_dir.glob("commits/step-*")))
        )
        # 3. Own the run directory and the storage; find the checkpoint to continue from.
        store, uploader, checkpoint = CheckpointStore(run_dir), None, None
        if machine.processes.is_first:
            store, uploader, checkpoint = open_run_storage(
                config, machine, corpus.rows, data=data, run_dir=run_dir, resume=resume,
                durability=durability, stop=stop, stack=stack,
            )  # fmt: skip
            if then_data is not None:
                verify_once(then_data, run_dir / "verified-then.json")
        step = machine.processes.first_of(checkpoint.step if checkpoint else None)
        if checkpoint is None and step is not None:
            checkpoint = store.load(step)
        # 4. Train with micro-batches that fit: halved, from where the run stands, until they do.
        run = Run(
            config, corpus, machine, store, uploader, durability, accounting, tracking, shows_plan,
            stop,
        )  # fmt: skip
        found = checkpoint.manifest.get("micro_batch") if checkpoint else None
        num_rows = choose_num_rows(config, machine, found)
        while (fewer := _train_or_fewer_rows(run, checkpoint, num_rows)) is not None:
            num_rows, checkpoint = fewer, store.newest()


def _train_or_fewer_rows(run: Run, checkpoint: Checkpoint | None, num_rows: int) -> int | None:
    """Train; return the next smaller micro-batch if the memory is too small for this one."""
    device = run.machine.device
    try:
        _train(run, checkpoint, num_rows)
        return None
    except MemoryExhaustedError as error:
        fewer = smaller(num_rows)
        if fewer is None or run.machine.processes.size > 1:
            raise UnavailableError(
                f"{num_rows} rows of {run.config.sequence_length} tokens at a time do not fit into "
                f"the memory of {device} ({error.reason}); set a smaller "
                "--train.micro_batch_size, --train.checkpoint_activations or --train.offload"
            ) from None
    print(
        f"out of memory with {num_rows} rows at a time; continuing with {fewer}, the global batch "
        "stays the same",
        file=sys.stderr,
    )
    gc.collect()  # what the failed attempt had allocated
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fewer


def _train(run: Run, checkpoint: Checkpoint | None, num_rows: int) -> None:
    """Train from `checkpoint`, or from the seed, to the end or to the first request to stop."""
    config, machine, memory = run.config, run.machine, PeakMeter(run.machine.device)
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.train.deterministic))
        # 5. The objective with its model, the engine that holds its weights, and where it stands.
        objective = _build_objective(run, is_new=checkpoint is None)
        engine = build_engine(
            machine.engine, objective, config.optim, device=machine.device,
            precision=machine.precision, processes=machine.processes, micro_batch_size=num_rows,
        )  # fmt: skip
        if config.train.compile:
            objective.compile()
        progress, budget = _continue_from(checkpoint, engine, config.train.seed), budget_of(config)
        # 6. The batches, made by a thread one step ahead.
        source = batches_of(
            config, run.corpus, objective, num_rows=num_rows, num_processes=machine.processes.size
        )
        batches = ReadAhead(
            source, next_fraction=lambda: budget.fraction(progress),
            pin_memory=machine.device.type == "cuda",
        )  # fmt: skip
        stack.callback(batches.close)
        # 7. Where records go; a view's Stop button is a request to stop, too.
        views, trackers = _open_trackers(run, checkpoint, stack)
        stop = run.stop.or_if(*(view.asked_to_stop for view in views))
        # 8. What surrounds the loop: records, held-out loss, checkpoints, uploads.
        held_out = _held_out_loss(run, objective, trackers, num_rows)
        save, callbacks = _callbacks(run, progress, held_out, trackers, memory, num_rows)
        # 9. The loop.
        trainer = Trainer(
            objective=objective, engine=engine, batches=batches, budget=budget,
            learning_rate=learning_rate_of(config), progress=progress, callbacks=callbacks,
            stop=stop, max_nonfinite_steps=config.train.max_nonfinite_steps,
        )  # fmt: skip
        trainer.load_callback_states(checkpoint.manifest.get("callbacks", {}) if checkpoint else {})
        first_step = progress.step
        try:
            is_done = trainer.run()
        except MemoryExhaustedError as error:
            if error.is_undone and progress.step > first_step:
                save.save(progress)
            raise
        # 10. The outcome; what is open is closed with it.
        if not is_done:
            raise InterruptedRunError(
                f"stop requested; saved at step {progress.step:,}{of_steps(budget)}; the "
                "same command continues"
            )
        if machine.processes.is_first:
            _finish(run, progress, views)


def _build_objective(run: Run, *, is_new: bool) -> PretrainObjective:
    train = run.config.train
    torch.manual_seed(train.seed)
    objective = build_objective(run.config, vocabulary_of(run.corpus.rows.tokenizer))
    if is_new and train.init_from is not None:
        said = load_initial_weights(objective, train.init_from, run.run_dir / "tokenizer")
        if run.machine.processes.is_first:
            print(said, file=sys.stderr)
    if train.checkpoint_activations:
        checkpoint_activations(objective)
    return objective


def _continue_from(checkpoint: Checkpoint | None, engine: Engine, seed: int) -> Progress:
    # Dropout's generators start from the seed alone, whatever initialisation drew.
    torch.manual_seed(seed + engine.processes.rank)
    if checkpoint is None:
        return Progress()
    engine.load_weights(checkpoint.module_state())
    engine.load_state_dict(checkpoint.engine_state())
    checkpoint.restore_random_state(engine.processes.rank)
    return Progress(**checkpoint.manifest["progress"])


def _without_effect(config: PretrainConfig, max_steps: float) -> Iterator[str]:
    """Yield a note for each value that changes nothing in this run."""
    for milestone in config.train.milestones:
        if milestone > max_steps:
            yield f"note: milestone {milestone:,} is beyond max_steps {max_steps:,.0f}"
    if config.then.sequence_length == config.sequence_length:
        yield f"note: --then_data has rows of {config.sequence_length} tokens, as --data has"


def _open_trackers(
    run: Run, checkpoint: Checkpoint | None, stack: ExitStack
) -> tuple[list[WandbRun], list[Tracker]]:
    """Return the views in other services, and everything that takes records; process 0's only."""
    if not run.machine.processes.is_first:
        return [], []
    path, budget, first_step = run.run_dir / METRICS, budget_of(run.config), None
    if checkpoint is not None:
        first_step = checkpoint.step
        restore_metrics(checkpoint, path)
        print(f"continuing from step {first_step:,}", file=sys.stderr)
    for note in _without_effect(run.config, budget.max_steps):
        print(note, file=sys.stderr)
    metrics = MetricsFile(path, from_step=first_step)
    console = Console(
        num_steps=None if math.isinf(budget.max_steps) else int(budget.max_steps),
        first_step=first_step or 0,
        description=run.config.recipe,
    )
    for tracker in (metrics, console):
        stack.callback(tracker.close)
    views = views_of_run(run.tracking, run.run_dir, stop=run.stop)  # they read metrics' file
    return [stack.enter_context(view) for view in views], [metrics, console, *views]


def _held_out_loss(
    run: Run, objective: PretrainObjective, trackers: list[Tracker], num_rows: int
) -> HeldOutLoss:
    train, tokenizer = run.config.train, run.corpus.rows.tokenizer
    count = min(train.num_eval_rows, len(run.corpus.held_out))
    ids_BL = ShuffledRows(run.corpus.held_out, seed=HELD_OUT_SEED).take(0, count)
    # What guessing ordinary tokens by their frequency would get.
    counts = np.bincount(ids_BL.ravel(), minlength=tokenizer.vocab_size)
    counts[list(tokenizer.special_ids)] = 0
    batch = objective.corrupt_held_out(ids_BL, step_generator(HELD_OUT_SEED, 0))
    return HeldOutLoss(
        trackers,
        micro_batches(batch, num_rows),
        every_steps=train.eval_every_steps,
        unigram_entropy=entropy_of_counts(counts),
    )


def _callbacks(
    run: Run,
    progress: Progress,
    held_out: HeldOutLoss,
    trackers: list[Tracker],
    memory: PeakMeter,
    num_rows: int,
) -> tuple[SaveCheckpoints, list[Callback]]:
    """Return the callback that saves, and all of them in the order in which they are called."""
    train, machine, uploader = run.config.train, run.machine, run.uploader
    peak_flops = matrix_peak_flops(machine.device, machine.precision) * machine.processes.size
    usage = _open_usage(run, progress)
    log = LogTraining(
        trackers, every_steps=train.log_every_steps, peak_flops=peak_flops, usage=usage,
        uploader=uploader, memory=memory,
    )  # fmt: skip

    def before_save(progress: Progress) -> None:
        if usage:
            usage.update(progress)
        for tracker in trackers:
            if isinstance(tracker, MetricsFile):
                tracker.sync()  # a checkpoint's step must find its records again

    save = SaveCheckpoints(
        run.store,
        facts={
            "config_digest": digest(run.config),
            "precision": machine.precision,
            "device": machine.device.type,
            "engine": asdict(machine.engine),
            "micro_batch": {"asked": asked_rows(run.config, machine.processes), "size": num_rows},
        },
        every_steps=train.save_every_steps,
        every_minutes=train.save_every_minutes,
        milestones=train.milestones,
        before=before_save,
        after=lambda p: write_summary(run.run_dir, summary(p, peak_flops=peak_flops)),
        uploader=uploader,
    )
    if not machine.processes.is_first:
        return save, [log, held_out, save]
    callbacks = [Heartbeat(run.run_dir / "heartbeat.json"), log, held_out, save]
    if uploader:
        seconds = 60 * run.durability.final_sync_minutes
        callbacks.append(WaitForUploads(uploader, save.save, max_seconds=seconds))
    return save, [*callbacks, *_compare_plan(run, memory, num_rows)]


def _open_usage(run: Run, progress: Progress) -> UsageMeter | None:
    machine, accounting = run.machine, run.accounting
    if not machine.processes.is_first:
        return None
    return UsageMeter(
        progress,
        open_meter(accounting.energy, machine.device, machine.processes.size),
        device=machine.device,
        num_devices=machine.processes.size,
        price_per_hour=accounting.price_per_hour,
    )


def _compare_plan(run: Run, memory: PeakMeter, num_rows: int) -> list[Callback]:
    config, machine = run.config, run.machine
    if not run.shows_plan:
        return []
    try:
        plan = ComparePlan(
            config, machine.engine, memory, device=machine.device, precision=machine.precision,
            num_rows=num_rows, every_steps=config.train.log_every_steps,
        )  # fmt: skip
    except UnplannedError as reason:
        report(f"no plan: {reason}")
        return []
    return [plan]


def _finish(run: Run, progress: Progress, views: list[WandbRun]) -> None:
    if run.uploader:
        _show_checkpoints(run.run_dir, run.uploader.remote, views)
    if warning := undecayed(budget_of(run.config), progress):
        print(warning, file=sys.stderr)
    # The picture last: nothing of value depends on it.
    plot_loss(run.run_dir / METRICS, run.run_dir / "loss.png", title=run.config.recipe)


def _show_checkpoints(run_dir: Path, remote: RemoteRun, views: list[WandbRun]) -> None:
    """Show the stored checkpoints of a finished run as versions of one artifact.

    Not earlier: until then each of them may still be deleted.
    """
    try:
        steps = remote.store.steps() if views else []
        for step in steps:
            manifest = remote.store.manifest(step)
            for view in views:
                view.refer(
                    f"checkpoint-{read_json(run_dir / RECORD_NAME)['run_id']}",
                    kind="checkpoint",
                    url=join(remote.storage.url, manifest["directory"]),
                    files=manifest["files"],
                    metadata={key: manifest[key] for key in ("step", "files", "progress")},
                    aliases=[step_name(step), *(["final"] if step == steps[-1] else [])],
                )
    except SmallbenchError as problem:  # the run is done and stored; the views are for people
        report(f"the checkpoints are not shown: {problem}")
