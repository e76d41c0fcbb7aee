"""All that only a card can show, in one command of at most nine minutes.

    python -m benchmarks.card [--minutes=9] [--points=fp16,resume] [--dry_run]

Each point has a process of its own, prints its rows as they come, and fails alone. `--dry_run` goes
through the same code on the CPU with tiny models: it shows that the program works, no speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import run_systems
from benchmarks.systems import SYSTEMS, config_of
from smallbench.checkpoints.store import CheckpointStore
from smallbench.config import override_all
from smallbench.errors import UnavailableError
from smallbench.gpus import GIB, gpu_of_device
from smallbench.models.encoder import checkpoint_activations
from smallbench.planning.memory_trace import random_rows, stand_in_objective
from smallbench.planning.planner import Planner
from smallbench.pretraining.usage import open_meter
from smallbench.recipes import RECIPES
from smallbench.train.batch_sources import CorruptedRows
from smallbench.train.budget import Budget
from smallbench.train.engine import EngineChoice, build_engine
from smallbench.train.memory import PeakMeter
from smallbench.train.precision import choose_device, choose_precision
from smallbench.train.processes import join_processes
from smallbench.train.trainer import Trainer

SMALL = {
    "sequence_length": "32", "model.num_hidden_layers": "1", "model.hidden_size": "64",
    "model.num_attention_heads": "4", "model.embedding_size": "64",
    "model.intermediate_size": "64", "model.vocab_size": "512",
    "model.max_position_embeddings": "32", "train.global_batch_size": "4",
    "train.micro_batch_size": "4",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """Where the points run."""

    device: torch.device
    is_dry: bool
    end: float
    """Clock (`time.monotonic`) at which to stop."""

    @property
    def name(self) -> str:
        """The driver's name of it."""
        return "CPU, dry run" if self.is_dry else torch.cuda.get_device_name()

    def config(self, recipe: str, **values: str):
        """A recipe, made small for a dry run."""
        changed = {key.replace("__", "."): value for key, value in values.items()}
        return override_all(RECIPES[recipe](), {**changed, **(SMALL if self.is_dry else {})})


def row(point: str, what: str, result: str) -> None:
    print(f"| {point} | {what} | {result} |", flush=True)


def speed(card: Card) -> None:
    """All systems, eager and compiled, beside their peers."""
    run_systems(
        ["bert"] if card.is_dry else list(SYSTEMS),
        device=card.device,
        precision=choose_precision("auto", card.device),
        seconds=0 if card.is_dry else 2.0,
        compiled=not card.is_dry,
        batch_size=1 if card.is_dry else None,
        end=card.end,
    )


def trained(card: Card, config, choice: EngineChoice, precision: str, num_steps: int):
    """A trainer after `num_steps` steps on random rows, and the losses of its steps."""
    objective = stand_in_objective(config)
    checkpoint_activations(objective, config.train.checkpoint_activations)
    micro, whole = config.train.rows_per_forward, config.train.global_batch_size
    engine = build_engine(
        choice, objective, config.optim, device=card.device, precision=precision,
        processes=join_processes(card.device, needs_group=choice.engine == "deepspeed"),
        micro_batch_size=micro,
    )  # fmt: skip
    source = CorruptedRows(
        lambda start, count: random_rows(config, count, np.random.default_rng(start)),
        objective.corrupt,
        batch_size=lambda fraction: whole, micro_batch_size=micro, seed=0,
    )  # fmt: skip
    trainer = Trainer(
        objective=objective, engine=engine, batches=source, learning_rate=lambda progress: 1e-4,
        budget=Budget(num_steps),
    )  # fmt: skip
    objective.train()
    losses = []
    while trainer.progress.step < num_steps:
        result = trainer.train_step()
        assert result is not None
        losses.append(float(result.loss))
    return trainer, losses


def fp16(card: Card) -> None:
    """The V100's code path: fp16 with loss scaling, and what it costs in energy."""
    precision = "fp32" if card.is_dry else "fp16"
    for system in ("bert", "electra-deberta"):
        meter = open_meter("auto", card.device, 1)
        num_steps = 3 if card.is_dry else 50
        start = time.perf_counter()
        trainer, losses = trained(
            card, card.config(f"{system}-small"), EngineChoice(), precision, num_steps
        )
        seconds = time.perf_counter() - start
        is_finite = all(map(math.isfinite, losses))
        skipped = trainer.progress.num_skipped_steps
        used = "no counter" if meter is None else (
            f"{3.6e6 * meter.kwh(seconds):,.0f} J by {meter.method}"
        )  # fmt: skip
        row("fp16", system, f"{num_steps} steps, losses {'finite' if is_finite else 'NOT finite'} "
            f"({losses[0]:.2f} to {losses[-1]:.2f}), {skipped} skipped, {used}")  # fmt: skip


def plan(card: Card) -> None:
    """Planned and measured peak and time of a step."""
    precision = choose_precision("auto", card.device)
    gpu = None if card.is_dry else gpu_of_device(card.name)
    for system in SYSTEMS[:1] if card.is_dry else SYSTEMS:
        config = card.config(config_of(system).recipe)
        rows, length = config.train.rows_per_forward, config.sequence_length
        planner = Planner(config, device_type=card.device.type, precision=precision)
        way = (EngineChoice(), False)
        planned = planner.memory(way, rows).peak
        meter = PeakMeter(card.device)
        trainer, _ = trained(card, config, EngineChoice(), precision, 3)
        before = trainer.progress.train_seconds
        for _ in range(2 if card.is_dry else 20):
            trainer.train_step().loss.item()
        rate = (2 if card.is_dry else 20) * rows * length
        rate /= trainer.progress.train_seconds - before
        between = "no estimate for this card"
        if gpu is not None:
            fast, slow = planner.time(way, rows, gpu).seconds
            between = f"{rows * length / slow:,.0f} to {rows * length / fast:,.0f} planned"
        row("plan", system, f"{planned / GIB:.2f} GiB planned, {meter.peak_bytes() / GIB:.2f} "
            f"measured; tokens/s {between}, {rate:,.0f} measured")  # fmt: skip


def offload(card: Card) -> None:
    """DeepSpeed's ZeRO-Offload of 1.5 billion parameters."""
    config = card.config("bert-1.5b", train__global_batch_size="64", train__micro_batch_size="64")
    precision = choose_precision("auto", card.device) if card.is_dry else "fp16"
    num_steps = 3 if card.is_dry else 20
    choice, meter = EngineChoice("deepspeed", "optimizer"), PeakMeter(card.device)
    trainer, losses = trained(card, config, choice, precision, num_steps)
    planned = Planner(config, device_type=card.device.type, precision=precision).memory(
        (choice, config.train.checkpoint_activations), config.train.rows_per_forward
    )
    seconds = trainer.progress.train_seconds / num_steps
    skipped = trainer.progress.num_skipped_steps
    row("offload", "bert-1.5b", f"{num_steps} steps of {seconds:,.2f} s, {skipped} skipped, "
        f"losses {losses[0]:.2f} to {losses[-1]:.2f}; {planned.peak / GIB:.2f} GiB planned, "
        f"{meter.peak_bytes() / GIB:.2f} measured")  # fmt: skip


def resume(card: Card) -> None:
    """A run that is killed ends with the bits of one that is not."""
    with tempfile.TemporaryDirectory(prefix="smallbench-card-") as name:
        folder, draw = Path(name), random.Random(0)
        words = ["".join(draw.choices("aeioubcdfglmnprst", k=6)) for _ in range(300)]
        text = "\n\n".join(" ".join(draw.choices(words, k=300)) for _ in range(200))
        (folder / "text.txt").write_text(text)
        program = [sys.executable, "-m", "smallbench.jobs.cli"]
        length = 32 if card.is_dry else 256
        subprocess.run(
            [*program, "prepare", f"--corpus={folder / 'text.txt'}", f"--out={folder / 'data'}",
             "--vocab_size=300", f"--sequence_length={length}"],
            check=True, capture_output=True,
        )  # fmt: skip
        command = [
            *program, "pretrain", "electra-deberta-tiny", f"--data={folder / 'data'}",
            f"--sequence_length={length}", f"--train.device={card.device.type}",
            f"--model.max_position_embeddings={length}", "--train.deterministic",
            "--train.max_steps=60", "--train.save_every_steps=10", "--train.global_batch_size=8",
            "--train.num_eval_rows=8", "--model.hidden_dropout_prob=0.1", "--energy=none",
        ]  # fmt: skip
        outcomes = []
        for run, is_killed in (("whole", False), ("killed", True)):
            run_dir = folder / run
            line = [*command, f"--run_dir={run_dir}"]
            if is_killed:
                _kill_after_a_checkpoint(line, run_dir)
            subprocess.run(line, check=True, capture_output=True)
            newest = CheckpointStore(run_dir).newest()
            assert newest is not None
            assert newest.step == 60
            files = newest.manifest["files"]
            outcomes.append([files[f]["sha256"] for f in ("module.safetensors", "engine.pt")])
    same = "the same bits" if outcomes[0] == outcomes[1] else "OTHER bits"
    row("resume", f"electra-deberta-tiny, rows of {length}", f"killed and continued: {same}")


def _kill_after_a_checkpoint(command: list[str], run_dir: Path) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((run_dir / "commits").glob("*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


POINTS: dict[str, tuple[Callable[[Card], None], float]] = {
    "fp16": (fp16, 45),
    "resume": (resume, 120),
    "plan": (plan, 90),
    "offload": (offload, 180),
    "speed": (speed, 540),
}
"""What runs, and its longest time in seconds; what is over is left to `speed`, the last."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="the longest the whole takes")
    parser.add_argument("--points", default=",".join(POINTS))
    parser.add_argument("--dry_run", action="store_true", help="on the CPU, with tiny models")
    parser.add_argument("--only", choices=POINTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes - 10
    try:
        device = choose_device("cpu" if arguments.dry_run else "cuda")
    except UnavailableError as error:
        parser.exit(69, f"{error}\n")
    card = Card(device, arguments.dry_run, end)
    if arguments.only:
        POINTS[arguments.only][0](card)
        return 0
    print(f"# {card.name}, torch {torch.__version__}\n| point | what | result |\n|---|---|---|",
          flush=True)  # fmt: skip
    # DeepSpeed would choose its accelerator by itself.
    environment, failed = {**os.environ, "DS_ACCELERATOR": card.device.type}, []
    for point in arguments.points.split(","):
        left = end - time.monotonic()
        if not arguments.dry_run:
            left = min(POINTS[point][1], left)
        command = [sys.executable, "-m", "benchmarks.card", f"--only={point}"]
        command += [f"--minutes={left / 60}", *(["--dry_run"] if arguments.dry_run else [])]
        try:
            done = subprocess.run(command, timeout=max(left, 1), check=False, env=environment)
            reason = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"stopped after {left:,.0f} s"
        if reason:
            failed.append(point)
            row(point, "", f"FAILED: {reason}")
    print(json.dumps({"benchmark": "card", "device": card.name, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
