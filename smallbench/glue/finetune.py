"""Fine-tune one task with one seed in the trainer of pretraining, and store the predictions.

Defaults are those of protocol robust-v1: at most 128 tokens, batch 32, AdamW with bias correction,
weight decay 0.01, 10 % warm-up, linear decay to zero, clip 1.0, the model's own dropout, the
weights of the last step, one evaluation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallbench.errors import DataError, InterruptedRunError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.features import MOST_UNKNOWN, EpochBatches, Features, tokenize
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import RunResult, RunSettings, run_directory, score_run, write_run
from smallbench.glue.task_data import TaskData
from smallbench.glue.tasks import Task
from smallbench.objectives.classification import Classification
from smallbench.stop import NEVER, Stop
from smallbench.train.budget import Budget, Progress
from smallbench.train.config import AdamWConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.memory import exhaustion_raised
from smallbench.train.precision import choose_device, choose_precision
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Callback, StepResult, Trainer


def settings_for(
    encoder: PretrainedEncoder,
    data: TaskData,
    config: FinetuneConfig,
    *,
    learning_rate: float,
    seed: int,
) -> RunSettings:
    """Return the settings that identify a run of `encoder` on `data`."""
    return RunSettings(
        task=data.task.name,
        model=encoder.name,
        model_sha256=encoder.sha256,
        num_parameters=encoder.num_parameters,
        learning_rate=learning_rate,
        seed=seed,
        epochs=config.epochs or data.task.default_epochs,
        batch_size=config.batch_size,
        max_length=config.max_length,
        weight_decay=config.weight_decay,
        warmup_fraction=config.warmup_fraction,
        clip_norm=config.clip_norm,
        precision=choose_precision(config.precision, choose_device(config.device)),
        max_train_examples=config.max_train_examples,
        is_sample=data.is_sample,
        random_init=encoder.random_init,
        pooling=config.shared_head,
        files_sha256=encoder.files_sha256,
        split=data.scored_splits[0],
    )


def tokenize_task(
    encoder: PretrainedEncoder, data: TaskData, config: FinetuneConfig
) -> dict[str, Features]:
    """Return every split of a task, tokenised for `encoder`.

    Raises `ConfigError` if `max_length` is more than the encoder accepts, `DataError` if its
    tokenizer does not know most of the text.
    """
    encoder.check_length(config.max_length)
    try:
        features = {
            name: tokenize(
                examples,
                encoder.tokenizer,
                max_length=config.max_length,
                with_types=encoder.has_token_types,
            )
            for name, examples in data.splits.items()
        }
    except Exception as error:  # tokenizers raises Exception itself
        raise DataError(
            f"the tokenizer of {encoder.name} cannot read {data.task.title} ({error}); copy its "
            "files again"
        ) from error
    shares = {name: split.unknown_share for name, split in features.items()}
    worst = max(shares, key=lambda name: shares[name])
    told = f"{data.task.title}: {shares[worst]:.1%} of the tokens of {worst} are unknown"
    if shares[worst] > MOST_UNKNOWN:
        raise DataError(
            f"{told} to the tokenizer of {encoder.name}; expected the tokenizer that the model "
            "was trained with"
        )
    if shares[worst] >= 0.0005:  # else it would print "0.0%"
        print(f"{told}, the most of its splits", file=sys.stderr, flush=True)
    return features


def finetune(
    encoder: PretrainedEncoder,
    data: TaskData,
    config: FinetuneConfig,
    *,
    learning_rate: float,
    seed: int,
    out: Path,
    features: Mapping[str, Features] | None = None,
    on_progress: Callable[[float], None] = lambda fraction: None,
    stop: Stop = NEVER,
) -> RunResult:
    """Fine-tune `encoder` on `data.task` and store the run below `out`.

    `features` are the tokenised splits, if the caller has them; `on_progress` is called with the
    fraction of steps done. Raises `InterruptedRunError` if `stop` asks for it, and
    `MemoryExhaustedError` if the device's memory is too small; an unfinished run stores nothing.
    """
    data = data.first(config.max_train_examples)
    settings = settings_for(encoder, data, config, learning_rate=learning_rate, seed=seed)
    features = features or tokenize_task(encoder, data, config)
    start = time.perf_counter()
    with exhaustion_raised(None):
        objective, engine = _train(
            encoder, data.task, config, settings, features["train"],
            on_progress=on_progress, stop=stop,
        )  # fmt: skip
        train_seconds = time.perf_counter() - start
        num_examples = settings.epochs * len(data.splits["train"])
        predictions = {
            name: predict(objective, engine, split)
            for name, split in features.items()
            if name != "train"
        }
    result = score_run(
        settings,
        data,
        predictions,
        unknown_share={name: split.unknown_share for name, split in features.items()},
        seconds=time.perf_counter() - start,
        examples_per_second=num_examples / train_seconds,
    )
    write_run(run_directory(out, settings), result, predictions)
    return result


def _train(
    encoder: PretrainedEncoder,
    task: Task,
    config: FinetuneConfig,
    settings: RunSettings,
    features: Features,
    *,
    on_progress: Callable[[float], None],
    stop: Stop,
) -> tuple[Classification, TorchEngine]:
    device, learning_rate = choose_device(config.device), settings.learning_rate
    torch.manual_seed(settings.seed)
    objective = Classification(
        encoder.classifier(task, pooling=config.shared_head), is_regression=task.is_regression
    )
    optim = AdamWConfig(
        learning_rate=learning_rate,
        epsilon=1e-8,  # the default of torch and transformers; pretraining uses BERT's 1e-6
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    engine = TorchEngine(
        objective, optim, device=device, precision=choose_precision(config.precision, device)
    )
    batches = EpochBatches(
        features, batch_size=config.batch_size, epochs=settings.epochs, seed=settings.seed
    )
    num_steps = batches.num_steps
    num_warmup_steps = int(config.warmup_fraction * num_steps)
    trainer = Trainer(
        objective=objective,
        engine=engine,
        batches=batches,
        learning_rate=lambda progress: (
            learning_rate * linear_decay(progress.step, total=num_steps, warmup=num_warmup_steps)
        ),
        budget=Budget(max_steps=num_steps),
        callbacks=[_ReportProgress(on_progress, num_steps)],
        stop=stop,
    )
    if not trainer.run():
        raise InterruptedRunError(
            f"Stop requested during {task.title}, seed {settings.seed}; finished runs are "
            "stored. Run the same command to continue with this one"
        )
    return objective, engine


@torch.no_grad()
def predict(
    objective: Classification, engine: TorchEngine, features: Features, *, batch_size: int = 128
) -> np.ndarray[Any, Any]:
    """Return [N] predicted classes or numbers, in the order of the split."""
    objective.eval()
    predicted = np.zeros(len(features), dtype=np.float64 if objective.is_regression else np.int64)
    for rows in features.by_length(batch_size):
        with engine.autocast():
            values = objective.predict(features.batch(rows).to(engine.device))
        predicted[rows] = values.cpu().numpy()
    return predicted


@dataclass
class _ReportProgress(Callback):
    on_progress: Callable[[float], None]
    num_steps: int

    def after_step(self, progress: Progress, result: StepResult) -> None:
        self.on_progress(progress.step / self.num_steps)
