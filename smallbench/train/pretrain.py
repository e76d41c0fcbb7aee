"""A pretraining run, from a prepared corpus and a configuration to a run directory.

    RUN_DIR/run.json        configuration, corpus, code and machine of each attempt
    RUN_DIR/metrics.jsonl   every number, by step
    RUN_DIR/loss.png        the loss curve
    RUN_DIR/tokenizer/      the corpus's tokenizer, for the export
    RUN_DIR/checkpoints/, RUN_DIR/commits/   see `train.checkpoint`

The same command continues an interrupted run; with the same device, precision, thread count and
torch it ends with the weights, bit for bit, that the run would have had without the interruption.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
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
from smallbench.errors import ConfigError, InterruptedRunError
from smallbench.files import exclusive_lock
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.masking import IntArray, Vocabulary, step_generator
from smallbench.tracking.base import Tracker
from smallbench.tracking.console import Console
from smallbench.tracking.jsonl import MetricsFile
from smallbench.tracking.plot import plot_loss
from smallbench.train.batches import CorruptedRows, ReadAhead
from smallbench.train.callbacks import HeldOutLoss, LogTraining, SaveEvery
from smallbench.train.checkpoint import Checkpoint, CheckpointStore
from smallbench.train.config import PretrainConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.precision import (
    choose_device,
    choose_precision,
    matrix_peak_flops,
    require_compiler,
)
from smallbench.train.record import add_attempt, open_record
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Progress, Trainer

Resume = Literal["allow", "must", "never"]

HELD_OUT_SEED = 0
"""Seed of the choice and corruption of held-out rows: the same in every run, to compare them."""


def pretrain(
    config: PretrainConfig,
    *,
    data: Path,
    run_dir: Path,
    resume: Resume = "allow",
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `config` on the prepared corpus `data`, in `run_dir`, to its last step.

    Raises `InterruptedRunError` after a checkpoint when `should_stop` turned true, `ConfigError`
    where the run directory holds another run, `ConflictError` where somebody else trains in it.
    """
    rows = TokenRows(data, "train")
    held_out = TokenRows(data, "eval")
    config = fit_to_data(config, rows)
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    if config.train.compile:
        require_compiler(device)
    if resume == "must" and not CheckpointStore(run_dir).steps():
        raise ConfigError(f"--resume=must, but {run_dir} holds no checkpoint")
    in_use = f"another process trains in {run_dir}; wait for it, or choose another --run_dir"
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(run_dir / "lock", in_use))
        record = open_record(run_dir, config, data=data, manifest=rows.manifest)
        checkpoint = CheckpointStore(run_dir).newest()
        if checkpoint is not None and checkpoint.manifest["precision"] != precision:
            raise ConfigError(
                f"{run_dir} was trained in {checkpoint.manifest['precision']}, this device would "
                f"use {precision}; continue on a device like the first, or start a new --run_dir"
            )
        if resume == "never" and checkpoint is not None:
            raise ConfigError(
                f"{run_dir} already holds a run at step {checkpoint.step:,}; choose another "
                "--run_dir, or leave --resume=never out"
            )
        if not record["attempts"]:
            verify_shards(data)
            shutil.copytree(data / "tokenizer", run_dir / "tokenizer", dirs_exist_ok=True)
        attempt = add_attempt(run_dir, record, device=device, precision=precision)
        store = CheckpointStore(run_dir, attempt=attempt, keep_last=config.train.keep_last)
        store.clean_up()
        _Run(config, rows, held_out, run_dir, store, stack).train(
            checkpoint, device, precision, should_stop
        )


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
        stack: ExitStack,
    ) -> None:
        self.config, self.rows, self.held_out = config, rows, held_out
        self.run_dir, self.store, self.stack = run_dir, store, stack

    def train(
        self,
        checkpoint: Checkpoint | None,
        device: torch.device,
        precision: str,
        should_stop: Callable[[], bool],
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
            print(f"continuing from step {checkpoint.step:,}", file=sys.stderr)
        self.metrics = MetricsFile(
            self.run_dir / "metrics.jsonl",
            from_step=None if checkpoint is None else self.progress.step,
        )
        self.stack.callback(self.metrics.close)
        console = Console(
            num_steps=c.train.max_steps,
            first_step=self.progress.step,
            description=c.recipe,
        )
        self.stack.callback(console.close)
        trackers: list[Tracker] = [self.metrics, console]
        self.log = LogTraining(
            trackers,
            every_steps=c.train.log_every_steps,
            num_steps=c.train.max_steps,
            peak_flops=matrix_peak_flops(device, precision),
            progress=self.progress,
            pending=pending,
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
                SaveEvery(self._save, every_steps=c.train.save_every_steps),
            ],
            should_stop=should_stop,
            max_nonfinite_steps=c.train.max_nonfinite_steps,
        )
        finished = trainer.run()
        self._save()
        if not finished:
            raise InterruptedRunError(
                f"asked to stop; saved at step {self.progress.step:,} of {c.train.max_steps:,}; "
                "the same command continues"
            )
        # Last, and only for looks: nothing that the run is worth hangs on it.
        plot_loss(self.run_dir / "metrics.jsonl", self.run_dir / "loss.png", title=c.recipe)

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
        self.metrics.sync()  # a checkpoint's step must find its records again
        self.store.save(
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
