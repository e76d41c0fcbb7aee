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

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smallbench.config import digest
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import TokenizerInfo, TokenRows, entropy_of_counts, verify_shards
from smallbench.data.tokenizer import Tokenizer
from smallbench.errors import (
    ConfigError,
    InterruptedRunError,
    SmallbenchError,
    UnavailableError,
    UnsavedError,
)
from smallbench.files import copy_directory, exclusive_lock, read_json
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.masking import IntArray, Vocabulary, step_generator
from smallbench.storage.base import join, open_storage
from smallbench.storage.local import LocalStorage
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
    Retention,
    newest_of,
    restore_metrics,
)
from smallbench.train.config import DurabilityConfig, PretrainConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.precision import (
    choose_device,
    choose_precision,
    matrix_peak_flops,
    require_compiler,
)
from smallbench.train.record import (
    RECORD_NAME,
    add_attempt,
    holder_of,
    next_attempt,
    open_record,
)
from smallbench.train.remote import Pulled, RemoteRun, refer_checkpoints
from smallbench.train.schedule import linear_decay
from smallbench.train.stop import any_of
from smallbench.train.sync import Uploader, say
from smallbench.train.trainer import Progress, Trainer

Resume = Literal["allow", "must", "never"]

HELD_OUT_SEED = 0
"""Seed of the choice and corruption of held-out rows: the same in every run, to compare them."""


LAST_SECONDS = 30.0
"""How long to go on storing a finished run after a signal, where no grace is given."""

RELEASE_SECONDS = 3.0
"""How long to try to give the lease back."""

EXIT_SECONDS = 1.0
"""Kept of the grace for the way out."""


def pretrain(
    config: PretrainConfig,
    *,
    data: Path,
    run_dir: Path,
    resume: Resume = "allow",
    durability: DurabilityConfig | None = None,
    tracking: TrackerConfig | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> None:
    """Train `config` on the prepared corpus `data`, in `run_dir`, to its last step.

    With `durability.storage` the run is kept there too, and continues from there where `run_dir` is
    empty. `seconds_left` is how long there is to save once `should_stop` turned true. Raises
    `InterruptedRunError` after a committed checkpoint, `UnsavedError` where the time was too short
    for one, `ConfigError` where the run directory holds another run, `ConflictError` where somebody
    else trains in it.
    """
    rows = TokenRows(data, "train")
    held_out = TokenRows(data, "eval")
    config = fit_to_data(config, rows)
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    if config.train.compile:
        require_compiler(device)
    durability = durability or DurabilityConfig()
    if resume == "must" and not durability.storage and not CheckpointStore(run_dir).steps():
        raise ConfigError(f"--resume=must, but {run_dir} holds no checkpoint")
    remote = _open_remote(run_dir, durability)
    in_use = f"another process trains in {run_dir}; wait for it, or choose another --run_dir"
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(run_dir / "lock", in_use))
        if remote:
            remote.pull_record(run_dir)
        record = open_record(run_dir, config, data=data, manifest=rows.manifest)
        _check_resume(resume, CheckpointStore(run_dir), remote)
        attempt, uploader = next_attempt(record), None
        retention = Retention(
            keep_last=config.train.keep_last,
            keep_every_steps=config.train.keep_every_steps,
            milestones=config.train.milestones,
        )
        if remote:
            attempt = remote.claim(
                holder=holder_of(run_dir), at_least=attempt, should_stop=should_stop, say=say
            )
            uploader = Uploader(
                remote, retention, max_unsynced_seconds=60 * durability.max_unsynced_minutes
            )
            stack.callback(_release, remote, uploader)
            stack.enter_context(uploader)  # from here on the lease is renewed
            # Again: whoever was waited for may have begun the run, or gone on with it.
            remote.pull_record(run_dir)
            record = open_record(run_dir, config, data=data, manifest=rows.manifest)
            _check_resume(resume, CheckpointStore(run_dir), remote)
            remote.clean_up()
        store = CheckpointStore(
            run_dir,
            attempt=attempt,
            retention=retention,
            is_in_use=uploader.is_in_use if uploader else lambda step: False,
        )
        store.clean_up()
        checkpoint = newest_of([store, *([Pulled(remote, store)] if remote else [])])
        if checkpoint is not None and checkpoint.manifest["precision"] != precision:
            raise ConfigError(
                f"{run_dir} was trained in {checkpoint.manifest['precision']}, this device would "
                f"use {precision}; continue on a device like the first, or start a new --run_dir"
            )
        if not (run_dir / "tokenizer").exists():
            verify_shards(data)
            copy_directory(data / "tokenizer", run_dir / "tokenizer")
        first_step = checkpoint.step if checkpoint else 0
        add_attempt(
            run_dir, record, attempt, first_step=first_step, device=device, precision=precision
        )
        if remote and uploader:
            remote.push_record(run_dir)
            uploader.committed_step = max(remote.steps(), default=0)
            if checkpoint is not None and checkpoint.step > uploader.committed_step:
                uploader.submit(checkpoint)  # the last attempt did not come to it
        _Run(config, rows, held_out, run_dir, store, uploader, stack).train(
            checkpoint,
            device,
            precision,
            should_stop,
            seconds_left,
            final_sync_seconds=60 * durability.final_sync_minutes,
            tracking=tracking or TrackerConfig(),
        )


def _open_remote(run_dir: Path, durability: DurabilityConfig) -> RemoteRun | None:
    """The run in the storage, after a look whether it can be read and written."""
    if durability.storage is None:
        return None
    here = run_dir.resolve()
    storage = open_storage(join(durability.storage, here.name), durability)
    if isinstance(storage, LocalStorage):
        there = Path(storage.url).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ConfigError(
                f"--storage={durability.storage} would keep the run in its own directory {here}; "
                "choose another place"
            )
    storage.check()
    return RemoteRun(storage, lease_seconds=durability.lease_seconds)


def _check_resume(resume: Resume, store: CheckpointStore, remote: RemoteRun | None) -> None:
    steps = {*store.steps(), *(remote.steps() if remote else ())}
    where = f"{store.run_dir}" + (f" and {remote.storage.url}" if remote else "")
    if resume == "must" and not steps:
        raise ConfigError(f"--resume=must, but {where} holds no checkpoint")
    if resume == "never" and steps:
        raise ConfigError(
            f"{where} already holds a run at step {max(steps):,}; choose another --run_dir, or "
            "leave --resume=never out"
        )


def _release(remote: RemoteRun, uploader: Uploader) -> None:
    """Give the lease back, unless something of ours is still on its way; then it runs out."""
    if uploader.failure or uploader.is_busy():
        return

    def release() -> None:
        try:
            remote.release()
        except (SmallbenchError, OSError) as problem:
            say(f"the lease was not given back: {problem}")

    # A server that has fallen silent must not hold up the exit.
    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    thread.join(timeout=RELEASE_SECONDS)


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

    def __init__(
        self,
        config: PretrainConfig,
        rows: TokenRows,
        held_out: TokenRows,
        run_dir: Path,
        store: CheckpointStore,
        uploader: Uploader | None,
        stack: ExitStack,
    ) -> None:
        self.config, self.rows, self.held_out = config, rows, held_out
        self.run_dir, self.store, self.stack = run_dir, store, stack
        self.uploader = uploader
        self.save_seconds = 0.0
        """Running average of what a save takes; 0 before the first."""

    def train(
        self,
        checkpoint: Checkpoint | None,
        device: torch.device,
        precision: str,
        should_stop: Callable[[], bool],
        seconds_left: Callable[[], float],
        *,
        final_sync_seconds: float,
        tracking: TrackerConfig,
    ) -> None:
        """From `checkpoint`, or from the seed, to the last step or the first request to stop."""
        c = self.config
        torch.manual_seed(c.train.seed)
        self.objective = build_objective(c, vocabulary_of(self.rows.tokenizer))
        self.engine = TorchEngine(self.objective, c.optim, device=device, precision=precision)
        if c.train.compile:
            self.objective.compile()
        self.progress = Progress()
        pending: Mapping[str, list[float]] = {}
        # Dropout's generators start from the seed alone, whatever initialisation drew.
        torch.manual_seed(c.train.seed)
        if checkpoint is not None:
            checkpoint.load_module(self.objective)
            self.engine.load_state_dict(checkpoint.engine_state())
            checkpoint.restore_random_state()
            self.progress = Progress(**checkpoint.manifest["progress"])
            pending = checkpoint.manifest["pending_metrics"]
            restore_metrics(checkpoint, self.run_dir / METRICS)
            print(f"continuing from step {checkpoint.step:,}", file=sys.stderr)
        first_step = self.progress.step
        self.metrics = MetricsFile(
            self.run_dir / METRICS, from_step=None if checkpoint is None else first_step
        )
        self.stack.callback(self.metrics.close)
        console = Console(
            num_steps=c.train.max_steps,
            first_step=first_step,
            description=c.recipe,
        )
        self.stack.callback(console.close)
        views = [
            self.stack.enter_context(view)
            for view in views_of_run(tracking, self.run_dir, seconds_left=seconds_left)
        ]
        trackers: list[Tracker] = [self.metrics, console, *views]
        should_stop = any_of(should_stop, *(view.asked_to_stop for view in views))
        self.log = LogTraining(
            trackers,
            every_steps=c.train.log_every_steps,
            num_steps=c.train.max_steps,
            peak_flops=matrix_peak_flops(device, precision),
            progress=self.progress,
            pending=pending,
            also=self._sync_lag,
        )
        evaluation = self._held_out_loss(trackers)
        if checkpoint is None:
            evaluation.log(self.progress)
        trainer = Trainer(
            objective=self.objective,
            engine=self.engine,
            batches=self._batches(pin_memory=device.type == "cuda"),
            learning_rate=self._learning_rate,
            num_steps=c.train.max_steps,
            progress=self.progress,
            callbacks=[
                self.log,
                evaluation,
                SaveEvery(
                    self._save,
                    every_steps=c.train.save_every_steps,
                    milestones=c.train.milestones,
                ),
                Heartbeat(self.run_dir / "heartbeat.json"),
                EndWith(lambda: self.uploader.failure if self.uploader else None, self._save),
            ],
            should_stop=should_stop,
            max_nonfinite_steps=c.train.max_nonfinite_steps,
        )
        if not trainer.run():
            self._save_in_time(seconds_left, first_step=first_step)
            raise InterruptedRunError(
                f"asked to stop; saved at step {self.progress.step:,} of {c.train.max_steps:,}; "
                "the same command continues"
            )
        self._save()
        self._drain(final_sync_seconds, should_stop, seconds_left)
        self._refer(views)
        # Last, and only for looks: nothing that the run is worth hangs on it.
        plot_loss(self.run_dir / METRICS, self.run_dir / "loss.png", title=c.recipe)

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

    def _sync_lag(self, progress: Progress) -> Mapping[str, float]:
        """Steps that a machine with an empty disk would have to repeat."""
        if self.uploader is None:
            return {}
        return {"sync_lag_steps": progress.step - self.uploader.committed_step}

    def _learning_rate(self, step: int) -> float:
        c = self.config
        factor = linear_decay(
            step,
            num_steps=c.train.max_steps,
            num_warmup_steps=int(c.schedule.warmup_fraction * c.train.max_steps),
        )
        return c.optim.learning_rate * factor

    def _batches(self, *, pin_memory: bool) -> ReadAhead:
        c = self.config
        source = CorruptedRows(
            ShuffledRows(self.rows, seed=c.train.seed).take,
            self.objective.corrupt,
            self.objective.micro_batches,
            global_batch_size=c.train.global_batch_size,
            micro_batch_size=c.train.rows_per_forward,
            seed=c.train.seed,
        )
        ahead = ReadAhead(source, pin_memory=pin_memory)
        self.stack.callback(ahead.close)
        return ahead

    def _held_out_loss(self, trackers: list[Tracker]) -> HeldOutLoss:
        c = self.config
        count = min(c.train.num_eval_rows, len(self.held_out))
        ids_BL = ShuffledRows(self.held_out, seed=HELD_OUT_SEED).take(0, count)
        batch = self.objective.corrupt(ids_BL, step_generator(HELD_OUT_SEED, 0))
        return HeldOutLoss(
            trackers,
            self.objective,
            self.engine,
            self.objective.micro_batches(batch, c.train.rows_per_forward),
            every_steps=c.train.eval_every_steps,
            num_steps=c.train.max_steps,
            unigram_entropy=self._unigram_entropy(ids_BL),
        )

    def _unigram_entropy(self, ids_BL: IntArray) -> float:
        """Of the ordinary tokens of the evaluated rows: what guessing by frequency would get."""
        counts = np.bincount(ids_BL.ravel(), minlength=self.rows.tokenizer.vocab_size)
        counts[list(self.rows.tokenizer.special_ids)] = 0
        return entropy_of_counts(counts)

    def _save(self) -> None:
        start = time.perf_counter()
        self.metrics.sync()  # a checkpoint's step must find its records again
        is_new = self.progress.step not in self.store.steps()
        checkpoint = self.store.save(
            self.objective,
            self.engine.state_dict(),
            {
                "step": self.progress.step,
                "progress": self.progress.state_dict(),
                "pending_metrics": self.log.state_dict(),
                "config_digest": digest(self.config),
                "precision": self.engine.precision,
                "device": self.engine.device.type,
            },
        )
        if not is_new:
            return
        seconds, average = time.perf_counter() - start, self.save_seconds
        self.save_seconds = seconds if not average else 0.7 * average + 0.3 * seconds
        if self.uploader:
            self.uploader.submit(checkpoint)
