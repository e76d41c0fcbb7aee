"""Entries as good submissions have them, made up: seeded predictions over made-up gold labels.

`write_entries(root, 500, synthetic_gold())` is a full board; `scale` shrinks the dev sets for tests
that need only the form.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallbench import files
from smallbench.config import digest
from smallbench.glue.metrics import compute_metrics
from smallbench.glue.protocols import CHOICE_SEED, PROTOCOLS
from smallbench.glue.task_data import SAMPLE_MARKER
from smallbench.glue.tasks import TASKS
from smallbench.gpus import gpu_of_device
from smallbench.leaderboard.compute import count_parameters, train_flops
from smallbench.leaderboard.entry import (
    SCHEMA_VERSION,
    SIZE_NAMES,
    Data,
    Energy,
    Entry,
    Finetune,
    Hardware,
    Links,
    Model,
    Pretrain,
    Provenance,
    Stage,
    StoredRun,
    chained,
    predictions_bytes,
    predictions_path,
    write_entry,
)
from smallbench.leaderboard.gold import Choice, Gold
from smallbench.leaderboard.track_table import TRACKS
from smallbench.models import ARCHITECTURES as MODELS

# Accuracy (or correlation) that a small encoder reaches, and how far seeds scatter, in points.
LEVELS = {
    "cola": (0.79, 1.0),
    "sst2": (0.90, 0.5),
    "mrpc": (0.86, 0.7),
    "stsb": (0.86, 0.3),
    "qqp": (0.89, 0.1),
    "mnli": (0.80, 0.2),
    "qnli": (0.87, 0.3),
    "rte": (0.66, 1.9),
}
GPU = "Tesla V100-SXM2-16GB"
ARCHITECTURES = ("bert", "roberta", "deberta", "electra")
VOCAB_SIZE = 30_522


def synthetic_gold(seed: int = 0, *, scale: float = 1.0) -> Gold:
    """Labels of the official numbers of rows (times `scale`), taken for the pinned ones."""
    rng = np.random.default_rng(seed)
    labels = {}
    for name, task in TASKS.items():
        labels[name] = {}
        for split in task.dev_splits:
            size = max(40, round(task.split(split).num_rows * scale))
            if task.is_regression:
                labels[name][split] = rng.uniform(0, 5, size).round(3)
            else:
                weights = np.array([0.31, 0.69]) if name in ("cola", "mrpc") else None
                labels[name][split] = rng.choice(task.num_labels, size, p=weights)
    choices = {}
    for number, (name, task) in enumerate(TASKS.items()):
        size = max(40, round(min(task.split("train").num_rows // 10, 2_000) * scale))
        own = np.random.default_rng([seed, number])
        drawn = (
            own.uniform(0, 5, size)
            if task.is_regression
            else own.integers(0, task.num_labels, size)
        )
        choices[name] = Choice(hashlib.sha256(drawn.tobytes()).hexdigest(), drawn)
    return Gold(labels, frozenset(TASKS), choices=choices)


def write_gold(folder: Path, gold: Gold) -> None:
    """The labels in the official layout (dev files only), marked as no GLUE."""
    files.write_json(folder / SAMPLE_MARKER, {"is_glue": False})
    for name, splits in gold.labels.items():
        task = TASKS[name]
        for split, labels in splits.items():
            columns = task.headerless or (*task.tsv_texts, task.tsv_label)
            lines = [] if task.headerless else ["\t".join(columns)]
            for label in labels.tolist():
                word = f"{label:.3f}" if task.is_regression else task.file_labels[label]
                cells = [word if column == task.tsv_label else "text" for column in columns]
                lines.append("\t".join(cells))
            path = folder / task.directory / task.split(split).file
            files.write_text(path, "\n".join(lines) + "\n")


def answers(task: str, labels: np.ndarray, *, ability: float, rng: np.random.Generator):
    """Predictions right with probability about `ability`, on easy rows more often."""
    if TASKS[task].is_regression:
        noise = labels.std() * math.sqrt(1 / ability**2 - 1)
        return np.clip(labels + rng.normal(0, noise, len(labels)), 0, 5)
    # Which rows are hard is the data's, not the model's: seeded by the task alone.
    hardness = np.random.default_rng(len(labels)).normal(0, 1.5, len(labels))
    logit = math.log(ability / (1 - ability)) * 1.35
    right = rng.random(len(labels)) < 1 / (1 + np.exp(hardness - logit))
    other = (labels + rng.integers(1, TASKS[task].num_labels, len(labels))) % TASKS[task].num_labels
    return np.where(right, labels, other)


@dataclass(frozen=True)
class Made:
    """What `synthetic_entry` put together and `write_made` writes."""

    entry: Entry
    runs: list[StoredRun]
    predictions: dict[str, bytes]
    train_log: list[dict]


def synthetic_entry(
    slug: str, gold: Gold, *, seed: int, quality: float = 0.0, track: str = "small"
) -> Made:
    """An entry of tier *logged*; `quality` is in points of AVG above a small encoder's."""
    rng = np.random.default_rng(seed)
    protocol, is_tiny = PROTOCOLS[TRACKS[track].protocol], track == "tiny"
    architecture = ARCHITECTURES[seed % 4]
    hidden = 64 if is_tiny else (192, 256, 384)[seed % 3]
    encoder = MODELS.config_class(architecture)(
        num_hidden_layers=2 if is_tiny else 12,
        hidden_size=hidden,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        embedding_size=hidden if architecture == "roberta" else 128,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=512,
        type_vocab_size={"roberta": 1, "deberta": 0}.get(architecture, 2),
    )
    objective = "replaced_token" if architecture == "electra" else "masked_lm"
    count = count_parameters(encoder)
    steps, batch, length = int(rng.integers(20, 1000)) * 1000, 128, 128
    if is_tiny:
        steps = 2_000
    flops = train_flops(
        encoder, [Stage(steps, batch, length)], objective=objective, mask_fraction=0.15,
        generator_width=0.25,
    )  # fmt: skip
    assert flops is not None
    gpu = None if is_tiny else gpu_of_device(GPU)
    seconds = flops / (rng.uniform(0.2, 0.45) * 1e12 * (gpu.peak_tflops["fp16"] if gpu else 0.3))
    config = {
        "recipe": f"{architecture}-small",
        "sequence_length": length,
        "model": {
            name: getattr(encoder, name) for name in ("architecture", *SIZE_NAMES)
        }
        | ({"max_relative_positions": 512} if architecture == "deberta" else {}),
        "objective": {"objective": objective, "mask_fraction": 0.15}
        | ({"generator_width": 0.25} if objective == "replaced_token" else {}),
        "train": {"max_steps": steps, "global_batch_size": batch, "seed": 1 + seed},
    }  # fmt: skip
    log = chained(
        _train_log(
            rng,
            steps=steps,
            tokens_per_step=batch * length,
            seconds=seconds,
            flops=flops,
            peak=None if is_tiny else 9 << 30,
        ),
        config_digest=digest(config),
    )
    rates = protocol.learning_rates
    chosen = {task: float(rates[rng.integers(len(rates))]) for task in protocol.tasks}
    runs, predictions = [], {}
    for name in protocol.tasks:
        task, (level, spread) = TASKS[name], LEVELS[name]
        for run_seed in protocol.seeds(task):
            epochs = protocol.epochs(task)
            place = {"learning_rate": chosen[name], "seed": run_seed, "epochs": epochs}
            ability = np.clip(level + quality / 100 + rng.normal(0, spread / 100), 0.05, 0.99)
            paths = {}
            for split in task.dev_splits:
                path = predictions_path(name, split=split, **place)
                values = answers(name, gold.labels[name][split], ability=ability, rng=rng)
                predictions[path] = predictions_bytes(task, values)
                paths[split] = path
            runs.append(StoredRun(task=name, predictions=paths, **place))
    _add_choices(runs, predictions, gold, protocol, chosen, seed=seed)
    entry = Entry(
        schema_version=SCHEMA_VERSION,
        slug=slug,
        name=f"{architecture.title()} {hidden} ({slug})",
        date=f"20{25 + seed % 2}-{1 + seed % 12:02}-{1 + seed % 28:02}",
        authors=(f"Author {seed}", "Someone Else"),
        contact=f"author{seed}@example.org",
        license="Apache-2.0",
        links=Links(code=f"https://example.org/{slug}"),
        tier="logged",
        notes=(),
        model=Model(
            num_parameters=count.total,
            num_parameters_without_embeddings=count.without_embeddings,
            architecture=architecture,
            objective=objective,
            from_scratch=True,
            distilled_from=None,
            **{name: getattr(encoder, name) for name in SIZE_NAMES},
        ),
        data=Data(
            name="OpenWebText",
            revision=None,
            sha256=hashlib.sha256(b"openwebtext").hexdigest(),
            unique_tokens=9_000_000_000,
            epochs=steps * batch * length / 9e9,
            contains_glue=False,
        ),
        pretrain=Pretrain(
            num_steps=steps,
            global_batch_size=batch,
            sequence_length=length,
            ramps=(),
            num_tokens=steps * batch * length,
            wall_seconds=1.05 * seconds,
            gpu_active_seconds=seconds,
            precision="fp16",
            seed=1 + seed,
        ),
        hardware=Hardware(
            gpu=GPU if gpu else "x86_64",
            count=1,
            memory_bytes=16 << 30 if gpu else None,
            peak_tflops=gpu.peak_tflops["fp16"] if gpu else None,
            driver="535.161.08" if gpu else None,
            torch="2.13.0",
            usd_per_hour=float(rng.choice([0.35, 0.55, 0.9])),
        ),
        energy=Energy(
            kwh=float(rng.uniform(0.5, 0.9)) * gpu.tdp_watts * seconds / 3.6e6 if gpu else None,
            method="nvml" if gpu else None,
            gco2_per_kwh=float(rng.choice([56.0, 380.0])),
        ),
        finetune=Finetune(
            protocol=protocol.name,
            learning_rates=rates,
            chosen=chosen,
            num_trials=5,
            batch_size=32,
            max_length=128,
            weight_decay=0.01,
            warmup_fraction=0.1,
            clip_norm=1.0,
            precision="fp16",
            model_sha256=hashlib.sha256(slug.encode()).hexdigest(),
            pooling=protocol.fixed["pooling"],
            choice_sha256={name: gold.choices[name].sha256 for name in protocol.tasks},
        ),
        provenance=Provenance(
            code_version="0.1.0",
            git_commit=hashlib.sha1(slug.encode()).hexdigest(),
            dirty=False,
            image_digest=None,
            command=("smallbench", "pretrain", f"{architecture}-small", "--data=owt"),
            config_digest=digest(config),
            config=config,
            train_log_sha256=log[-1]["sha256"],
        ),
    )
    return Made(entry, runs, predictions, log)


def _add_choices(runs, predictions, gold, protocol, chosen, *, seed):
    """The runs that chose a learning rate: what was chosen has the best score."""
    rng = np.random.default_rng([seed, 1])
    for name in protocol.tasks:
        task, labels = TASKS[name], gold.choices[name].labels
        made = [answers(name, labels, ability=LEVELS[name][0], rng=rng)
                for _ in protocol.learning_rates]  # fmt: skip
        made.sort(key=lambda values: compute_metrics(task, values, labels)[task.ranking_metric])
        others = [rate for rate in protocol.learning_rates if rate != chosen[name]]
        for rate, values in zip([*others, chosen[name]], made, strict=True):
            place = {"learning_rate": rate, "seed": CHOICE_SEED, "epochs": protocol.epochs(task)}
            path = predictions_path(name, split="choice", **place)
            predictions[path] = predictions_bytes(task, values)
            runs.append(StoredRun(task=name, predictions={"choice": path}, **place))


def _train_log(rng, *, steps, tokens_per_step, seconds, flops, peak, num_records=400):
    first = math.log(VOCAB_SIZE) + 0.1
    yield {"step": 0, "tokens": 0, "seconds": 0.0, "loss": first, "mlm_loss": first,
           "tokens_per_second": None}  # fmt: skip
    shares = rng.normal(1, 0.02, num_records)
    times = seconds * np.cumsum(shares) / shares.sum()
    marks = np.linspace(0, steps, num_records + 1).round().astype(int)[1:]
    last_step, last_time = 0, 0.0
    for step, time in zip(marks.tolist(), times.tolist(), strict=True):
        loss = 2.0 + (first - 2.0) * math.exp(-8 * step / steps) + rng.normal(0, 0.02)
        yield {
            "step": step,
            "tokens": step * tokens_per_step,
            "seconds": time,
            "loss": loss,
            "mlm_loss": loss,
            "tokens_per_second": (step - last_step) * tokens_per_step / (time - last_time),
            "train_flops": flops * step / steps,
            **({"peak_memory_bytes": peak} if peak else {}),
        }
        last_step, last_time = step, time


def write_made(root: Path, made: Made) -> Path:
    """Write it below `root`; its folder."""
    folder = root / made.entry.slug
    write_entry(
        folder, made.entry, runs=made.runs, predictions=made.predictions, train_log=made.train_log
    )
    return folder


def write_entries(root: Path, num: int, gold: Gold, *, seed: int = 0) -> list[Path]:
    """`num` entries of different quality below `root`, some of which tie."""
    quality = np.random.default_rng(seed).normal(0, 1.5, num)
    return [
        write_made(
            root,
            synthetic_entry(f"entry-{n:03}", gold, seed=1000 * seed + n, quality=quality[n]),
        )
        for n in range(num)
    ]
