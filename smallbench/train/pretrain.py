"""A pretraining run, from a prepared corpus and a configuration to a run directory.

    RUN_DIR/run.json        configuration, data, code and machine of each attempt
    RUN_DIR/metrics.jsonl   every number, by step
    RUN_DIR/loss.png        the loss curve
    RUN_DIR/tokenizer/      the corpus's tokenizer, for the export
    RUN_DIR/checkpoints/, RUN_DIR/commits/   see `train.checkpoint`

The same command continues an interrupted run; on the same device and precision it ends with the
weights, bit for bit, that the run would have had without the interruption.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch

from smallbench import __version__
from smallbench.config import differing_keys, digest, to_dict
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import TokenRows
from smallbench.errors import ConfigError, InterruptedRunError
from smallbench.models import ARCHITECTURES
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.masking import Vocabulary, is_special, step_generator
from smallbench.files import exclusive_lock, write_json
from smallbench.tracking.base import Tracker
from smallbench.tracking.console import Console
from smallbench.tracking.jsonl import MetricsFile
from smallbench.tracking.plot import plot_loss
from smallbench.train.batches import CorruptedRows, ReadAhead
from smallbench.train.callbacks import HeldOutLoss, LogTraining, SaveEvery
from smallbench.train.checkpoint import CheckpointStore
from smallbench.train.config import OBSERVING_KEYS, PretrainConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Progress, Trainer

Resume = Literal["allow", "must", "never"]

HELD_OUT_SEED = 0
"""Seed of the choice and corruption of held-out rows: the same in every run, to compare them."""


def fit_to_data(config: PretrainConfig, rows: TokenRows) -> PretrainConfig:
    """`config` with what it left to the data filled in.

    Raises `ConfigError` where the two contradict each other.
    """
    if config.sequence_length != rows.sequence_length:
        raise ConfigError(
            f"sequence_length {config.sequence_length} != {rows.sequence_length} of the prepared "
            "corpus; run 'smallbench prepare' again with --sequence_length, or set this one"
        )
    if config.sequence_length > config.model.max_position_embeddings:
        raise ConfigError(
            f"sequence_length {config.sequence_length} is over model.max_position_embeddings "
            f"{config.model.max_position_embeddings}"
        )
    tokenizer = rows.manifest.tokenizer
    if config.model.vocab_size is None:
        model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
        return dataclasses.replace(config, model=model)
    if config.model.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} != the tokenizer's "
            f"{tokenizer.vocab_size}; set --model.vocab_size=none to take the tokenizer's, or "
            "run 'smallbench prepare' again with another --vocab_size"
        )
    return config


def vocabulary_of(rows: TokenRows) -> Vocabulary:
    """What corruption must know of the corpus's tokenizer."""
    t = rows.manifest.tokenizer
    return Vocabulary(
        size=t.vocab_size,
        pad_id=t.pad_id,
        cls_id=t.cls_id,
        sep_id=t.sep_id,
        mask_id=t.mask_id,
        special_ids=tuple(t.special_ids),
    )


def unigram_entropy(ids: np.ndarray[Any, Any], vocabulary: Vocabulary) -> float:
    """Entropy, in nats, of the distribution of ordinary tokens: what guessing by frequency gets."""
    counts = np.bincount(ids[~is_special(ids, vocabulary)], minlength=1)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def build_objective(config: PretrainConfig, vocabulary: Vocabulary) -> Any:
    """The objective with a freshly initialised model; draws from PyTorch's global generator."""
    model = ARCHITECTURES[config.model.architecture](config.model)
    return OBJECTIVES[config.objective.objective](config.objective, model, vocabulary)


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
    config = fit_to_data(config, rows)
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    with ExitStack() as stack:
        stack.enter_context(
            exclusive_lock(
                run_dir / "lock",
                f"another process trains in {run_dir}; wait for it, or choose another --run_dir",
            )
        )
        _Run(config, rows, data, run_dir, device, precision, should_stop, stack).run(resume)


class _Run:
    """The parts of one attempt, put together in order."""

    def __init__(
        self,
        config: PretrainConfig,
        rows: TokenRows,
        data: Path,
        run_dir: Path,
        device: torch.device,
        precision: str,
        should_stop: Callable[[], bool],
        stack: ExitStack,
    ) -> None:
        self.config, self.rows, self.data, self.run_dir = config, rows, data, run_dir
        self.device, self.precision = device, precision
        self.should_stop = should_stop
        self.stack = stack
        self.log: LogTraining | None = None

    def run(self, resume: Resume) -> None:
        c = self.config
        attempt = self._record_attempt(resume)
        self.store = CheckpointStore(self.run_dir, attempt=attempt, keep_last=c.train.keep_last)
        self.store.clean_up()
        checkpoint = self.store.newest()
        if resume == "never" and checkpoint is not None:
            raise ConfigError(
                f"{self.run_dir} already holds a run at step {checkpoint.step:,}; choose another "
                "--run_dir, or leave --resume=never out"
            )
        if resume == "must" and checkpoint is None:
            raise ConfigError(f"--resume=must, but {self.run_dir} holds no checkpoint")

        torch.manual_seed(c.train.seed)
        vocabulary = vocabulary_of(self.rows)
        self.objective = build_objective(c, vocabulary)
        self.engine = TorchEngine(
            self.objective, c.optim, device=self.device, precision=self.precision
        )
        # The generators of dropout start from the seed alone, whatever initialisation drew.
        torch.manual_seed(c.train.seed)
        self.progress = Progress()
        if checkpoint is not None:
            checkpoint.load_module(self.objective)
            self.engine.load_state_dict(checkpoint.engine_state())
            checkpoint.restore_random_state()
            self.progress = Progress(**checkpoint.manifest["progress"])
            self._say(f"continuing from step {checkpoint.step:,}")

        self.metrics = MetricsFile(self.run_dir / "metrics.jsonl", from_step=self.progress.step)
        self.stack.callback(self.metrics.close)
        if self.progress.step < c.train.max_steps:
            pending = checkpoint.manifest["pending_metrics"] if checkpoint is not None else {}
            finished = self._train(vocabulary, pending)
        else:
            finished = True
        self._save()
        if self.progress.step:
            plot_loss(self.run_dir / "metrics.jsonl", self.run_dir / "loss.png", title=c.recipe)
        if not finished:
            raise InterruptedRunError(
                f"asked to stop; saved at step {self.progress.step:,} of {c.train.max_steps:,}; "
                "the same command continues"
            )

    def _train(self, vocabulary: Vocabulary, pending: Mapping[str, list[float]]) -> bool:
        c = self.config
        console = Console(
            num_steps=c.train.max_steps,
            first_step=self.progress.step,
            description=c.recipe,
        )
        self.stack.callback(console.close)
        trackers: list[Tracker] = [self.metrics, console]
        source = ReadAhead(
            CorruptedRows(
                ShuffledRows(self.rows, seed=c.train.seed).take,
                self.objective.corrupt,
                self.objective.micro_batches,
                global_batch_size=c.train.global_batch_size,
                micro_batch_size=c.train.rows_per_forward,
                seed=c.train.seed,
            ),
            pin_memory=self.device.type == "cuda",
        )
        self.stack.callback(source.close)
        held_out = TokenRows(self.data, "eval")
        count = min(c.train.num_eval_rows, len(held_out))
        ids_BL = ShuffledRows(held_out, seed=HELD_OUT_SEED).take(0, count)
        batch = self.objective.corrupt(ids_BL, step_generator(HELD_OUT_SEED, 0))
        evaluation = HeldOutLoss(
            trackers,
            self.objective,
            self.engine,
            self.objective.micro_batches(batch, c.train.rows_per_forward),
            every_steps=c.train.eval_every_steps,
            num_steps=c.train.max_steps,
            unigram_entropy=unigram_entropy(ids_BL, vocabulary),
        )
        if self.progress.step == 0:
            for tracker in trackers:
                tracker.log(evaluation.record(self.progress))
        num_warmup_steps = int(c.schedule.warmup_fraction * c.train.max_steps)

        def learning_rate(step: int) -> float:
            return c.optim.learning_rate * linear_decay(
                step, num_steps=c.train.max_steps, num_warmup_steps=num_warmup_steps
            )

        self.log = LogTraining(
            trackers,
            every_steps=c.train.log_every_steps,
            num_steps=c.train.max_steps,
            peak_flops=matrix_peak_flops(self.device, self.precision),
            progress=self.progress,
            pending=pending,
        )
        trainer = Trainer(
            objective=self.objective,
            engine=self.engine,
            batches=source,
            learning_rate=learning_rate,
            num_steps=c.train.max_steps,
            progress=self.progress,
            callbacks=[
                self.log,
                evaluation,
                SaveEvery(self._save, every_steps=c.train.save_every_steps),
            ],
            should_stop=self.should_stop,
            max_nonfinite_steps=c.train.max_nonfinite_steps,
        )
        return trainer.run()

    def _save(self) -> None:
        self.metrics.sync()  # a checkpoint's step must find its records again
        self.store.save(
            self.objective,
            self.engine.state_dict(),
            {
                "step": self.progress.step,
                "progress": self.progress.state_dict(),
                "pending_metrics": {} if self.log is None else self.log.state_dict(),
                "config_digest": digest(self.config),
                "precision": self.precision,
                "device": self.device.type,
            },
        )

    def _record_attempt(self, resume: Resume) -> int:
        """Add this attempt to `run.json`; its number. Refuses a run of another configuration."""
        path = self.run_dir / "run.json"
        config = to_dict(self.config)
        corpus = {
            "tokenizer": self.rows.manifest.tokenizer.fingerprint,
            "pad_id": self.rows.manifest.tokenizer.pad_id,
            "rows": len(self.rows),
            # Equal shards are equal data, wherever they lie.
            "shards": digest({s.name: s.sha256 for s in self.rows.manifest.shards}),
        }
        if path.exists():
            run = json.loads(path.read_text())
            differing = {
                key: pair
                for key, pair in differing_keys(run["config"], config).items()
                if key not in OBSERVING_KEYS
            }
            if run["corpus"]["shards"] != corpus["shards"]:
                differing["data"] = (run["data"], str(self.data))
            if differing:
                listed = ", ".join(f"{k}: {old} → {new}" for k, (old, new) in differing.items())
                raise ConfigError(
                    f"{self.run_dir} holds a run of another configuration ({listed}); choose "
                    "another --run_dir, or start it with the same values"
                )
        else:
            shutil.copytree(self.data / "tokenizer", self.run_dir / "tokenizer", dirs_exist_ok=True)
            run = {
                "schema_version": 1,
                "run_id": uuid4().hex[:8],
                "config": config,
                "config_digest": digest(self.config),
                "data": str(self.data),
                "corpus": corpus,
                "attempts": [],
            }
        number = len(run["attempts"]) + 1
        attempt = {
            "number": number,
            "started_unix_seconds": round(time.time(), 3),
            "command": sys.argv,
            "smallbench": __version__,
            "git_commit": git_commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": _device_name(self.device),
            "precision": self.precision,
            "num_threads": torch.get_num_threads(),
        }
        run["attempts"].append(attempt)
        write_json(path, run)
        return number

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr)


def git_commit() -> str | None:
    """The commit of the code that runs, with `+dirty` where it was changed; None outside git."""
    here = Path(__file__).parent
    try:
        # Installed inside somebody else's checkout, that checkout's commit says nothing of us.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=here, capture_output=True, check=True, timeout=10,
        )  # fmt: skip
        commit, status = (
            subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if status else commit


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
