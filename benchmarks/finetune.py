"""Fine-tuning on SST-2: ours against transformers' Trainer, alternating, as a ratio.

    python -m benchmarks.finetune --glue=DIR [--model=DIR] [--rounds=5] [--steps=50] [--threads=2]

Same encoder, head, rows, batch size, maximum length, optimizer and precision. Each takes its
batches as it does by default: ours are of similar length, Trainer's (with
`DataCollatorWithPadding`) at random, both padded to their longest row. Both have tokenised before.
Each has a process of its own that waits while the other works; a round is `--steps` steps of each.
`--same_batches` lets Trainer group by length too (50 of its steps see all lengths, so let rounds
have no fewer), `--tuned_peer` tells its allocator what our engine tells ours.

Without `--model` it is an ELECTRA of BERT-Small's shape with random weights, under a WordPiece
tokenizer trained on the task's sentences; without `--glue` the rows are generated samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from smallbench.data.tokenizer import train_tokenizer
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.features import EpochBatches
from smallbench.glue.finetune import tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import TaskData, load_task
from smallbench.glue.tasks import TASKS
from smallbench.objectives.classification import Classification
from smallbench.train.budget import Budget
from smallbench.train.config import AdamWConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.memory import keep_freed_memory
from smallbench.train.precision import choose_device, choose_precision
from smallbench.train.trainer import Trainer

TASK = TASKS["sst2"]
LEARNING_RATE = 1e-4


def build_model(data: TaskData, folder: Path) -> None:
    """An ELECTRA of BERT-Small's shape (BERT with factorised embeddings) and its tokenizer."""
    from transformers import ElectraConfig, ElectraModel

    tokenizer = train_tokenizer("wordpiece", data.splits["train"].first, vocab_size=30_522)
    tokenizer.save(folder)
    config = ElectraConfig(
        vocab_size=30_522, embedding_size=128, hidden_size=256, num_hidden_layers=12,
        num_attention_heads=4, intermediate_size=1024, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    ElectraModel(config).save_pretrained(folder)


def ours(
    encoder: PretrainedEncoder, data: TaskData, config: FinetuneConfig, link: Connection, steps: int
) -> None:
    """Our fine-tuning, `steps` of its steps for each message."""
    device = choose_device("cpu")
    features = tokenize_task(encoder, data, config)["train"]
    torch.manual_seed(1)
    objective = Classification(encoder.classifier(TASK), is_regression=False)
    optim = AdamWConfig(
        learning_rate=LEARNING_RATE,
        epsilon=1e-8,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    precision = choose_precision(config.precision, device)
    trainer = Trainer(
        objective=objective,
        engine=TorchEngine(objective, optim, device=device, precision=precision),
        batches=EpochBatches(features, batch_size=config.batch_size, epochs=1000, seed=1),
        learning_rate=lambda step: LEARNING_RATE,
        budget=Budget(max_steps=1),  # not asked: its steps are called one by one
    )
    objective.train()
    link.send("ready")
    while link.recv() == "round":
        start = time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
        link.send(time.perf_counter() - start)


def theirs(
    encoder: PretrainedEncoder,
    data: TaskData,
    config: FinetuneConfig,
    link: Connection,
    steps: int,
    *,
    grouped: bool,
) -> None:
    """transformers' Trainer, held between its steps until a message lets it go on."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, TrainerCallback, TrainingArguments
    from transformers import Trainer as Peer

    features = tokenize_task(encoder, data, config)["train"]
    assert features.labels is not None
    columns = {"input_ids": features.input_ids, "label": features.labels.tolist()}
    if features.token_type_ids is not None:
        columns["token_type_ids"] = features.token_type_ids

    class Rounds(TrainerCallback):
        """Waits at the beginning of each round, and ends when told to."""

        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                link.send(time.perf_counter() - self.start if state.global_step else "ready")
                if link.recv() != "round":
                    os._exit(0)  # what Trainer would do at its end is not measured
                self.start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=1000,
            learning_rate=LEARNING_RATE,
            weight_decay=config.weight_decay,
            max_grad_norm=config.clip_norm,
            lr_scheduler_type="constant",
            bf16=choose_precision(config.precision, choose_device("cpu")) == "bf16",
            use_cpu=True,
            seed=1,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
            train_sampling_strategy="group_by_length" if grouped else "random",
        )
        Peer(
            model=encoder.transformers_classifier(TASK),
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
            callbacks=[Rounds()],
        ).train()


def work(who: str, link: Connection, model: str, glue: str, arguments: argparse.Namespace) -> None:
    """One of the two, in a process of its own."""
    torch.set_num_threads(arguments.threads)
    data = load_task(TASK, glue)
    config = FinetuneConfig(batch_size=arguments.batch_size, precision=arguments.precision)
    encoder = PretrainedEncoder(model)
    if who == "ours":
        ours(encoder, data, config, link, arguments.steps)
        return
    if arguments.tuned_peer:
        keep_freed_memory()
    theirs(encoder, data, config, link, arguments.steps, grouped=arguments.same_batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", help="folder in the official layout; none: samples")
    parser.add_argument("--model", help="any encoder; none: BERT-Small's shape, random weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="of each, in a round")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--same_batches", action="store_true", help="Trainer groups by length")
    parser.add_argument("--tuned_peer", action="store_true", help="our allocator settings for both")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        glue, model = arguments.glue, arguments.model
        if glue is None:
            glue = f"{folder}/glue"
            write_sample_glue(Path(glue))
        if model is None:
            model = f"{folder}/model"
            build_model(load_task(TASK, glue), Path(model))
        measured = measure(model, glue, arguments)
    examples = arguments.steps * arguments.batch_size
    rates = {who: examples / statistics.median(rounds) for who, rounds in measured.items()}
    ratio = statistics.median(
        theirs / ours for ours, theirs in zip(measured["ours"], measured["theirs"], strict=True)
    )
    print(f"SST-2, batch {arguments.batch_size}, {arguments.threads} threads, "
          f"{arguments.precision}; medians of {arguments.rounds} alternating rounds of "
          f"{arguments.steps} steps")  # fmt: skip
    print("| program | examples/s |")
    print("|---|--:|")
    print(f"| ours | {rates['ours']:,.0f} |")
    print(f"| transformers' Trainer | {rates['theirs']:,.0f} |")
    print(f"| ours / Trainer | {ratio:.2f} |")
    print(json.dumps({"benchmark": "finetune", "task": "sst2", "ratio": round(ratio, 2),
                      "examples_per_second": {who: round(rate) for who, rate in rates.items()},
                      "seconds": {who: [round(s, 2) for s in r] for who, r in measured.items()},
                      **vars(arguments)}))  # fmt: skip


def measure(model: str, glue: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, by program."""
    context = multiprocessing.get_context("spawn")
    links, processes, seconds = {}, [], {}
    for who in ("ours", "theirs"):
        links[who], other = context.Pipe()
        process = context.Process(target=work, args=(who, other, model, glue, arguments))
        process.start()
        processes.append(process)
        assert links[who].recv() == "ready"
        seconds[who] = []
    for number in range(-1, arguments.rounds):  # the first is to warm up
        for who, link in links.items():
            link.send("round")
            spent = link.recv()
            if number >= 0:
                seconds[who].append(spent)
    for link, process in zip(links.values(), processes, strict=True):
        link.send("end")
        process.join()
    return seconds


if __name__ == "__main__":
    main()
