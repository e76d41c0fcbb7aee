"""A program: the peak memory of some real steps on the CPU, over what the process had before.

    python -m tests.planning.peak_memory RECIPE ENGINE OFFLOAD [KEY=VALUE …] [save]

Prints one JSON object, also whether each loss was finite, and with `save` what a save then adds.
"""

import ctypes
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from smallbench.checkpoints.state import random_state
from smallbench.checkpoints.store import CheckpointStore
from smallbench.config import override_all
from smallbench.models.encoder import checkpoint_activations
from smallbench.planning.memory_trace import random_rows, stand_in_objective
from smallbench.recipes import RECIPES
from smallbench.train.batch_sources import CorruptedRows
from smallbench.train.budget import Budget
from smallbench.train.engine import EngineChoice, build_engine
from smallbench.train.precision import choose_precision
from smallbench.train.processes import join_processes
from smallbench.train.trainer import Callback, Trainer

CPU = torch.device("cpu")


def resident_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def train(config, choice, *, num_steps, device=CPU):
    """Losses of `num_steps` steps, seconds, and the engine."""
    objective = stand_in_objective(config)
    checkpoint_activations(objective, config.train.checkpoint_activations)
    micro, whole = config.train.rows_per_forward, config.train.global_batch_size
    engine = build_engine(
        choice, objective, config.optim, device=device,
        precision=choose_precision(config.train.precision, device),
        processes=join_processes(device, needs_group=choice.engine == "deepspeed"),
        micro_batch_size=micro,
    )  # fmt: skip
    source = CorruptedRows(
        lambda start, count: random_rows(config, count, np.random.default_rng(start)),
        objective.corrupt,
        batch_size=lambda fraction: whole, micro_batch_size=micro, seed=0,
    )  # fmt: skip
    losses = []

    class Losses(Callback):
        def after_step(self, progress, result):
            losses.append(float(result.loss))

    trainer = Trainer(
        objective=objective, engine=engine, batches=source, learning_rate=lambda _: 1e-4,
        budget=Budget(num_steps), callbacks=[Losses()],
    )  # fmt: skip
    trainer.run()
    return losses, trainer.progress.train_seconds, engine


def save_bytes(engine):
    """What a save adds to the resident memory at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # copies must not hide in memory that was freed
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        store = CheckpointStore(Path(folder))
        store.save(engine.weights(), engine.state_dict(), [random_state()], {"step": 3})
        return resident_bytes("VmHWM") - before


def main() -> None:
    recipe, engine, offload, *values = sys.argv[1:]
    saves = "save" in values
    values = [value for value in values if value != "save"]
    config = override_all(RECIPES[recipe](), dict(value.split("=") for value in values))
    choice = EngineChoice(engine, offload)
    # What every run has: kernels, threads, an engine's own code.
    small = {
        "model.num_hidden_layers": 1, "train.global_batch_size": 2, "train.micro_batch_size": 1,
    }  # fmt: skip
    tiny = override_all(RECIPES["electra-tiny"](), {"model.vocab_size": 512, **small})
    train(tiny, choice, num_steps=2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    before = resident_bytes("VmRSS")
    losses, seconds, engine = train(config, choice, num_steps=3)
    peak_bytes = resident_bytes("VmHWM") - before
    print(json.dumps({
        "peak_bytes": peak_bytes, "save_bytes": save_bytes(engine) if saves else None,
        "num_parameters": sum(weight.numel() for weight in engine.weights().values()),
        "are_finite": all(map(math.isfinite, losses)), "losses": losses, "seconds": seconds,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
