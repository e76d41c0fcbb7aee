"""A pretraining run, from a prepared corpus and a configuration to a run directory.

    RUN_DIR/run.json        configuration, corpus, code and machine of each attempt
    RUN_DIR/metrics.jsonl   every number, by step
    RUN_DIR/loss.png        the loss curve
    RUN_DIR/tokenizer/      the corpus's tokenizer, for the export
    RUN_DIR/checkpoints/, RUN_DIR/commits/   see `train.checkpoint`
    RUN_DIR/heartbeat.json                   the step and the time, about once a second

The same command continues an interrupted run; with the same device, precision, thread count and
torch it ends with the weights, bit for bit, that the run would have had without the interruption.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallbench.config import digest
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import TokenizerInfo, TokenRows, entropy_of_counts
from smallbench.data.tokenizer import Tokenizer
from smallbench.errors import (
    ConfigError,
    InterruptedRunError,
    SmallbenchError,
    UnavailableError,
    UnsavedError,
)
from smallbench.files import read_json
from smallbench.models.encoder import checkpoint_activations
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.masking import IntArray, Vocabulary, step_generator
from smallbench.tracking.base import Tracker
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.console import Console
from smallbench.tracking.jsonl import MetricsFile
from smallbench.tracking.plot import plot_loss
from smallbench.tracking.wandb import WandbRun, views_of_run
from smallbench.train.batches import CorruptedRows, ReadAhead
from smallbench.train.callbacks import EndWith, Heartbeat, HeldOutLoss, LogTraining, SaveEvery
from smallbench.train.checkpoint import (
    METRICS,
    Checkpoint,
    CheckpointStore,
    restore_metrics,
)
from smallbench.train.compare_plan import ComparePlan, PeakMeter, memory_bytes_of
from smallbench.train.config import AccountingConfig, DurabilityConfig, PretrainConfig
from smallbench.train.engines import build_engine
from smallbench.train.memory import MemoryExhaustedError
from smallbench.train.place import Place, Resume, Setup, take_place
from smallbench.train.plan import choose, smaller
from smallbench.train.precision import (
    choose_device,
    choose_precision,
    matrix_peak_flops,
    require_compiler,
)
from smallbench.train.processes import join_processes, local_device
from smallbench.train.randomness import random_state
from smallbench.train.record import (
    RECORD_NAME,
    write_summary,
)
from smallbench.train.remote import refer_checkpoints
from smallbench.train.schedule import linear_decay, ramped_batch_size
from smallbench.train.stop import any_of
from smallbench.train.sync import say
from smallbench.train.trainer import Callback, Progress, Trainer
from smallbench.train.trial import try_plugins, undone_if_plugins_fail
from smallbench.train.usage import UsageMeter, open_meter, summary

HELD_OUT_SEED = 0
"""Seed of the choice and corruption of held-out rows: the same in every run, to compare them."""


LAST_SECONDS = 30.0
"""How long to go on storing a finished run after a signal, where no grace is given."""

EXIT_SECONDS = 1.0
"""Kept of the grace for the way out."""


def pretrain(
    config: PretrainConfig,
    *,
    data: Path,
    run_dir: Path,
    resume: Resume = "allow",
    durability: DurabilityConfig | None = None,
    accounting: AccountingConfig | None = None,
    tracking: TrackerConfig | None = None,
    shows_plan: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> None:
    """Train `config` on the prepared corpus `data`, in `run_dir`, until its budget is used up.

    With `durability.storage` the run is kept there too, and continues from there where `run_dir` is
    empty. `shows_plan` takes seconds to plan what will be measured, and prints both. `seconds_left`
    is how long there is to save once `should_stop` turned true. Raises
    `InterruptedRunError` after a committed checkpoint, `UnsavedError` where the time was too short
    for one, `ConfigError` where the run directory holds another run, `ConflictError` where somebody
    else trains in it.
    """
    rows = TokenRows(data, "train")
    config = fit_to_data(config, rows)
    try_plugins(config, rows, vocabulary_of(rows.tokenizer))
    device = local_device(choose_device(config.train.device))
    precision = choose_precision(config.train.precision, device)
    if config.train.compile:
        require_compiler(device)
    decision = choose(
        config,
        device_type=device.type,
        precision=precision,
        memory_bytes=memory_bytes_of(device),
    )
    choice = decision.engine
    processes = join_processes(device, needs_group=choice.engine == "deepspeed")
    setup = Setup(
        config=config,
        rows=rows,
        held_out=TokenRows(data, "eval"),
        run_dir=run_dir,
        device=device,
        precision=precision,
        choice=choice,
        fitting_rows=decision.num_rows,
        processes=processes,
        shows_plan=shows_plan,
        durability=durability or DurabilityConfig(),
        accounting=accounting or AccountingConfig(),
        tracking=tracking or TrackerConfig(),
        should_stop=should_stop,
        seconds_left=seconds_left,
    )
    with undone_if_plugins_fail(run_dir), ExitStack() as stack:
        if processes.is_first:
            place, checkpoint = take_place(setup, data, resume, stack)
        else:
            place, checkpoint = Place(CheckpointStore(run_dir), None), None
        step = processes.first_of(checkpoint.step if checkpoint else None)
        if checkpoint is None and step is not None:
            checkpoint = place.store.load(step)
        _train_in_memory(setup, place, checkpoint)


def _train_in_memory(setup: Setup, place: Place, checkpoint: Checkpoint | None) -> None:
    """Train with micro-batches that fit: halved, from where the run stands, until they do."""
    num_rows = rows_per_forward(setup, checkpoint)
    while True:
        try:
            with ExitStack() as stack:
                _Run(setup, place, stack, num_rows=num_rows).train(checkpoint)
            return
        except MemoryExhaustedError as error:
            fewer = smaller(num_rows)
            if fewer is None or setup.processes.size > 1:
                raise UnavailableError(
                    f"{num_rows} rows of {setup.config.sequence_length} tokens at a time do not "
                    f"fit into the memory of {setup.device} ({str(error).splitlines()[0]}); set a "
                    "smaller --train.micro_batch_size, --train.checkpoint_activations or "
                    "--train.offload"
                ) from None
            print(
                f"out of memory with {num_rows} rows at a time; going on with {fewer}, the global "
                "batch stays the same",
                file=sys.stderr,
            )
            num_rows = fewer
        checkpoint = place.store.newest()
        gc.collect()  # what the failed attempt had allocated
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()


def rows_per_forward(setup: Setup, checkpoint: Checkpoint | None) -> int:
    """Rows of a micro-batch: what was asked for, or what an earlier attempt found to fit of it.

    Raises `ConfigError` where the processes cannot share a global batch.
    """
    train, size = setup.config.train, setup.processes.size
    asked = train.micro_batch_size or train.global_batch_size // size
    for batch_size in (train.global_batch_size, setup.config.schedule.initial_batch_size):
        if batch_size is not None and (not asked or batch_size % (asked * size)):
            raise ConfigError(
                f"a batch of {batch_size} sequences cannot be shared by {size} processes that take "
                f"{asked} at a time; set --train.micro_batch_size so that it can"
            )
    found: Mapping[str, int] = checkpoint.manifest.get("micro_batch", {}) if checkpoint else {}
    if found.get("asked") == asked:
        return found["size"]
    rows = asked
    while rows > setup.fitting_rows:
        rows = smaller(rows) or 1  # a divisor: the global batch is still shared evenly
    return rows


def fit_to_data(config: PretrainConfig, rows: TokenRows) -> PretrainConfig:
    """`config` with what it left to the data filled in.

    Raises `ConfigError` where the two contradict each other.
    """
    if config.sequence_length != rows.sequence_length:
        raise ConfigError(
            f"sequence_length {config.sequence_length} != {rows.sequence_length} of the prepared "
            "corpus; run 'smallbench prepare' again with --sequence_length, or set this one"
        )
    vocab_size = rows.tokenizer.vocab_size
    if config.model.vocab_size is None:
        return replace(config, model=replace(config.model, vocab_size=vocab_size))
    if config.model.vocab_size != vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} != the tokenizer's {vocab_size}; set "
            "--model.vocab_size=none to take the tokenizer's, or run 'smallbench prepare' again "
            "with another --vocab_size"
        )
    return config


def vocabulary_of(info: TokenizerInfo | Tokenizer) -> Vocabulary:
    """What corruption must know of a tokenizer."""
    return Vocabulary(
        size=info.vocab_size,
        pad_id=info.pad_id,
        cls_id=info.cls_id,
        sep_id=info.sep_id,
        mask_id=info.mask_id,
        special_ids=tuple(info.special_ids),
    )


def build_objective(config: PretrainConfig, vocabulary: Vocabulary) -> Any:
    """The objective with a freshly initialised model; draws from PyTorch's global generator."""
    return OBJECTIVES[config.objective.objective](config.objective, config.model, vocabulary)


class _Run:
    """One attempt, after it is clear that it may begin."""

    def __init__(self, setup: Setup, place: Place, stack: ExitStack, *, num_rows: int) -> None:
        self.setup, self.config, self.processes = setup, setup.config, setup.processes
        self.rows, self.run_dir, self.budget = setup.rows, setup.run_dir, setup.budget
        self.store, self.uploader, self.stack = place.store, place.uploader, stack
        self.num_rows = num_rows
        """Of a micro-batch."""
        self.save_seconds = 0.0
        """Running average of what a save takes; 0 before the first."""

    def train(self, checkpoint: Checkpoint | None) -> None:
        """From `checkpoint`, or from the seed, to the end or to the first request to stop."""
        c, setup = self.config, self.setup
        memory = PeakMeter(setup.device)
        torch.manual_seed(c.train.seed)
        self.objective = build_objective(c, vocabulary_of(self.rows.tokenizer))
        if c.train.checkpoint_activations:
            checkpoint_activations(self.objective)
        self.engine = build_engine(
            setup.choice,
            self.objective,
            c.optim,
            device=setup.device,
            precision=setup.precision,
            processes=self.processes,
            micro_batch_size=self.num_rows,
        )
        if c.train.compile:
            self.objective.compile()
        self.progress = Progress()
        pending: Mapping[str, list[float]] = {}
        # Dropout's generators start from the seed alone, whatever initialisation drew.
        torch.manual_seed(c.train.seed + self.processes.rank)
        if checkpoint is not None:
            self.engine.load_weights(checkpoint.module_state())
            self.engine.load_state_dict(checkpoint.engine_state())
            checkpoint.restore_random_state(self.processes.rank)
            self.progress = Progress(**checkpoint.manifest["progress"])
            pending = checkpoint.manifest["pending_metrics"]
        first_step = self.progress.step
        trackers = self._open_trackers(checkpoint) if self.processes.is_first else []
        views = self._open_views()
        should_stop = any_of(setup.should_stop, *(view.asked_to_stop for view in views))
        peak_flops = matrix_peak_flops(setup.device, setup.precision) * self.processes.size
        self.peak_flops = peak_flops
        self.usage = self._open_usage()
        self.log = LogTraining(
            [*trackers, *views],
            every_steps=c.train.log_every_steps,
            budget=self.budget,
            peak_flops=peak_flops,
            progress=self.progress,
            pending=pending,
            also=self._other_fields,
        )
        evaluation = self._held_out_loss([*trackers, *views])
        if checkpoint is None:
            evaluation.log(self.progress)
        trainer = Trainer(
            objective=self.objective,
            engine=self.engine,
            batches=self._batches(pin_memory=setup.device.type == "cuda"),
            learning_rate=self._learning_rate,
            budget=self.budget,
            progress=self.progress,
            callbacks=[
                self.log,
                evaluation,
                SaveEvery(
                    self._save,
                    every_steps=c.train.save_every_steps,
                    milestones=c.train.milestones,
                ),
                *self._watch(memory),
            ],
            should_stop=should_stop,
            max_nonfinite_steps=c.train.max_nonfinite_steps,
        )
        try:
            is_done = trainer.run()
        except MemoryExhaustedError as error:
            if error.is_undone and self.progress.step > first_step:
                self._save()
            raise
        if not is_done:
            self._save_in_time(setup.seconds_left, first_step=first_step)
            raise InterruptedRunError(
                f"asked to stop; saved at step {self.progress.step:,}{self._of_steps()}; "
                "the same command continues"
            )
        self._save()
        self._drain(60 * setup.durability.final_sync_minutes, should_stop, setup.seconds_left)
        self._refer(views)
        if self.processes.is_first:
            self._say_what_is_left()
            # Last, and only for looks: nothing that the run is worth hangs on it.
            plot_loss(self.run_dir / METRICS, self.run_dir / "loss.png", title=c.recipe)

    def _open_trackers(self, checkpoint: Checkpoint | None) -> list[Tracker]:
        if checkpoint is not None:
            restore_metrics(checkpoint, self.run_dir / METRICS)
            print(f"continuing from step {checkpoint.step:,}", file=sys.stderr)
        self.metrics = MetricsFile(
            self.run_dir / METRICS, from_step=None if checkpoint is None else checkpoint.step
        )
        self.stack.callback(self.metrics.close)
        console = Console(
            num_steps=None if math.isinf(self.budget.max_steps) else int(self.budget.max_steps),
            first_step=self.progress.step,
            description=self.config.recipe,
        )
        self.stack.callback(console.close)
        return [self.metrics, console]

    def _open_views(self) -> list[WandbRun]:
        """Where the records are shown besides; only process 0's."""
        if not self.processes.is_first:
            return []
        views = views_of_run(
            self.setup.tracking, self.run_dir, seconds_left=self.setup.seconds_left
        )
        return [self.stack.enter_context(view) for view in views]

    def _refer(self, views: Iterable[WandbRun]) -> None:
        """Show where the checkpoints are stored."""
        if self.uploader is None:
            return
        run_id = read_json(self.run_dir / RECORD_NAME)["run_id"]
        for view in views:
            try:
                refer_checkpoints(view, run_id, self.uploader.remote)
            except SmallbenchError as problem:  # the run is done and stored; this was to look at
                say(f"the checkpoints are not shown: {problem}")

    def _watch(self, memory: PeakMeter) -> list[Callback]:
        """What only process 0 looks after."""
        if not self.processes.is_first:
            return []
        failure = lambda: self.uploader.failure if self.uploader else None  # noqa: E731
        watching: list[Callback] = [
            Heartbeat(self.run_dir / "heartbeat.json"),
            EndWith(failure, self._save),
        ]
        if self.setup.shows_plan:
            plan = ComparePlan(
                self.config,
                self.setup.choice,
                memory,
                device=self.setup.device,
                precision=self.setup.precision,
                num_rows=self.num_rows,
                every_steps=self.config.train.log_every_steps,
                progress=self.progress,
            )
            watching.append(plan)
        return watching

    def _say_what_is_left(self) -> None:
        """Where hours ended a run whose schedule runs along steps."""
        if self.progress.step < self.budget.max_steps < math.inf:
            print(
                f"{self.config.train.max_hours:g} hours are used up at step "
                f"{self.progress.step:,}{self._of_steps()}, where the learning rate has not come "
                "down yet; with a larger --max_hours the same command goes on",
                file=sys.stderr,
            )

    def _of_steps(self) -> str:
        """The end, for people: ` of 1,000`; nothing where hours count."""
        steps = self.budget.max_steps
        return "" if math.isinf(steps) else f" of {steps:,.0f}"

    def _save_in_time(self, seconds_left: Callable[[], float], *, first_step: int) -> None:
        """Commit before the time is over; raises `UnsavedError` where it will not do."""
        step = self.progress.step
        if step == first_step:  # a scheduler that starts such a run again and again gets nowhere
            raise SmallbenchError(
                f"asked to stop at step {step:,}, before this attempt had done a step; there is "
                "nothing new to save"
            )
        if seconds_left() < self.save_seconds:
            raise UnsavedError(
                f"asked to stop with {max(seconds_left(), 0):.1f} s left, but a save takes about "
                f"{self.save_seconds:.1f} s; the same command continues from step "
                f"{max(self.store.steps(), default=0):,}"
            )
        self._save()
        if self.uploader is None:
            return
        done = self.uploader.drain(seconds_left() - EXIT_SECONDS)
        if self.uploader.failure:
            raise self.uploader.failure
        if not done:
            raise UnsavedError(
                f"asked to stop; step {step:,} is on the local disk, but the time was too short to "
                f"store it; the same command continues from there, or from step "
                f"{self.uploader.committed_step:,} on another machine"
            )

    def _drain(
        self,
        seconds: float,
        should_stop: Callable[[], bool],
        seconds_left: Callable[[], float],
    ) -> None:
        """Wait for the last upload, shorter when asked to stop."""
        if self.uploader is None:
            return
        end, was_asked = time.monotonic() + seconds, False
        while not self.uploader.drain(min(0.5, end - time.monotonic())):
            if should_stop() and not was_asked:
                was_asked = True
                left = min(seconds_left() - EXIT_SECONDS, LAST_SECONDS)
                end = min(end, time.monotonic() + left)
            if time.monotonic() >= end:
                problem = self.uploader.problem
                kind = type(problem) if problem else UnavailableError
                raise (UnsavedError if was_asked else kind)(
                    "the run has ended, but its last checkpoint is not stored yet"
                    + (f" ({problem})" if problem else "")
                    + "; it is on the local disk, the same command stores it"
                )
        if self.uploader.failure:
            raise self.uploader.failure

    def _other_fields(self, progress: Progress) -> Mapping[str, Any]:
        """What the run has used up, and the steps that an emptied disk would cost."""
        fields: dict[str, Any] = {"train_flops": progress.train_flops}
        used = self.usage.update(progress) if self.usage else {}
        fields |= {name: value for name, value in used.items() if name != "energy_method"}
        if self.uploader:
            fields["sync_lag_steps"] = progress.step - self.uploader.committed_step
        return fields

    def _open_usage(self) -> UsageMeter | None:
        setup, accounting = self.setup, self.setup.accounting
        if not self.processes.is_first:
            return None
        return UsageMeter(
            self.progress,
            open_meter(accounting.energy, setup.device, self.processes.size),
            device=setup.device,
            processes=self.processes,
            price_per_hour=accounting.price_per_hour,
        )

    def _learning_rate(self, step: int) -> float:
        c, budget = self.config, self.budget
        if budget.along_hours:
            total, done = budget.max_seconds, self.progress.train_seconds
            warmup = c.schedule.warmup_fraction * total
        else:
            total, done = budget.max_steps, float(step)
            warmup = int(c.schedule.warmup_fraction * total)
        return c.optim.learning_rate * linear_decay(done, total=total, warmup=warmup)

    def _batch_size(self, fraction: float) -> int:
        c = self.config
        if c.schedule.initial_batch_size is None:
            return c.train.global_batch_size
        return ramped_batch_size(
            fraction,
            first=c.schedule.initial_batch_size,
            last=c.train.global_batch_size,
            until=c.schedule.batch_ramp_fraction,
            multiple=c.train.rows_per_forward * self.processes.size,
        )

    def _batches(self, *, pin_memory: bool) -> ReadAhead:
        c = self.config
        source = CorruptedRows(
            ShuffledRows(self.rows, seed=c.train.seed).take,
            self.objective.corrupt,
            self.objective.micro_batches,
            batch_size=self._batch_size,
            micro_batch_size=self.num_rows,
            seed=c.train.seed,
        )
        ahead = ReadAhead(source, pin_memory=pin_memory)
        self.stack.callback(ahead.close)
        return ahead

    def _held_out_loss(self, trackers: list[Tracker]) -> HeldOutLoss:
        c, held_out = self.config, self.setup.held_out
        count = min(c.train.num_eval_rows, len(held_out))
        ids_BL = ShuffledRows(held_out, seed=HELD_OUT_SEED).take(0, count)
        batch = self.objective.corrupt(ids_BL, step_generator(HELD_OUT_SEED, 0))
        return HeldOutLoss(
            trackers,
            self.objective,
            self.engine,
            self.objective.micro_batches(batch, self.num_rows),
            every_steps=c.train.eval_every_steps,
            unigram_entropy=self._unigram_entropy(ids_BL),
        )

    def _unigram_entropy(self, ids_BL: IntArray) -> float:
        """Of the ordinary tokens of the evaluated rows: what guessing by frequency would get."""
        counts = np.bincount(ids_BL.ravel(), minlength=self.rows.tokenizer.vocab_size)
        counts[list(self.rows.tokenizer.special_ids)] = 0
        return entropy_of_counts(counts)

    def _save(self) -> None:
        start = time.perf_counter()
        # Every process takes part: each may hold a part of the state.
        weights, state = self.engine.weights(), self.engine.state_dict()
        generators = self.processes.gathered(random_state())
        if not self.processes.is_first:
            return
        assert self.usage is not None
        self.usage.update(self.progress)
        self.metrics.sync()  # a checkpoint's step must find its records again
        is_new = self.progress.step not in self.store.steps()
        checkpoint = self.store.save(
            weights,
            state,
            generators,
            {
                "step": self.progress.step,
                "progress": self.progress.state_dict(),
                "pending_metrics": self.log.state_dict(),
                "config_digest": digest(self.config),
                "precision": self.engine.precision,
                "device": self.engine.device.type,
                "engine": asdict(self.setup.choice),
                "micro_batch": {"asked": self._asked_rows(), "size": self.num_rows},
            },
        )
        write_summary(self.run_dir, summary(self.progress, peak_flops=self.peak_flops))
        if not is_new:
            return
        seconds, average = time.perf_counter() - start, self.save_seconds
        self.save_seconds = seconds if not average else 0.7 * average + 0.3 * seconds
        if self.uploader:
            self.uploader.submit(checkpoint)

    def _asked_rows(self) -> int:
        train = self.config.train
        return train.micro_batch_size or train.global_batch_size // self.processes.size
