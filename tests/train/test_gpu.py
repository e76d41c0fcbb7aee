"""The CUDA path: the same laws in bf16 and in fp16 with loss scaling."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from smallbench.checkpoints.state import random_state, restore_random_state
from smallbench.config import override_all
from smallbench.planning.memory_trace import random_rows, stand_in_objective
from smallbench.recipes import RECIPES
from smallbench.train.batch_sources import CorruptedRows
from smallbench.train.budget import Budget
from smallbench.train.config import AdamWConfig
from smallbench.train.determinism import deterministic
from smallbench.train.engine import TorchEngine, load_loss_scale
from smallbench.train.memory import MemoryExhaustedError
from smallbench.train.precision import assert_compiled_for, choose_precision, matrix_peak_flops
from smallbench.train.processes import join_processes
from smallbench.train.trainer import Progress, Trainer, evaluate
from tests.train.tiny import Losses, objective, trainer

pytestmark = pytest.mark.gpu

PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="bf16 is emulated before Ampere"))]  # fmt: skip


def on_gpu(precision: str, *, num_steps: int = 20) -> tuple[Trainer, Losses]:
    losses = Losses()
    made = trainer(num_steps=num_steps, callbacks=[losses])
    optim = AdamWConfig(learning_rate=1e-2)
    made.objective = objective()
    made.engine = TorchEngine(
        made.objective, optim, device=torch.device("cuda"), precision=precision
    )
    return made, losses


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_follow_those_of_the_cpu(precision):
    expected = Losses()
    trainer(callbacks=[expected]).run()
    made, losses = on_gpu(precision)
    assert made.run()
    # fp16 may skip its first steps until the loss scale fits.
    tolerance = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-1}[precision]
    assert losses.losses == pytest.approx(expected.losses, abs=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_scale_belongs_to_the_state(precision):
    made, _ = on_gpu(precision, num_steps=3)
    if precision == "fp16":
        load_loss_scale(made.engine.scaler, {"scale": 128.0})
    made.run()
    state = made.engine.state_dict()
    assert bool(state["scaler"]) == (precision == "fp16")
    again, _ = on_gpu(precision)
    again.engine.load_state_dict(state)
    assert again.engine.scaler.get_scale() == made.engine.scaler.get_scale()


def test_evaluation_draws_nothing():
    made, _ = on_gpu("fp32", num_steps=1)
    batches, _ = made.batches.read(0)
    before = torch.cuda.get_rng_state()
    evaluate(made.objective, made.engine, batches)
    matrix_peak_flops(torch.device("cuda"), "fp32", seconds=0.05)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_this_torch_is_built_for_this_gpu():
    assert_compiled_for(torch.device("cuda"))


def deepspeed_on_gpu(precision: str, stage: int, offload: str) -> list[float]:
    """Losses of DeepSpeed's engine; in a process of its own, whose accelerator is the GPU."""
    from smallbench.train.deepspeed_engine import DeepSpeedEngine

    device = torch.device("cuda")
    made, losses = on_gpu(precision)
    made.objective = objective()
    made.engine = DeepSpeedEngine(
        made.objective,
        AdamWConfig(learning_rate=1e-2),
        device=device,
        precision=precision,
        processes=join_processes(device, needs_group=True),
        offload=offload,
        zero_stage=stage,
        micro_batch_size=8,
    )
    assert made.run()
    return losses.losses


PROGRAM = """
import json, sys
from tests.train.test_gpu import deepspeed_on_gpu
precision, stage, offload = sys.argv[1:]
print(json.dumps(deepspeed_on_gpu(precision, int(stage), offload)))
"""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [(0, "none"), (2, "optimizer"), (3, "parameters")], ids=str)
def test_deepspeed_follows_the_plain_engine(precision, kind):
    pytest.importorskip("deepspeed")
    _, expected = run_on_gpu(precision)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, precision, *map(str, kind)],
        cwd=Path(__file__).parents[2], env={**os.environ, "DS_ACCELERATOR": "cuda"},
        stdout=subprocess.PIPE, text=True, check=True, timeout=600,
    )  # fmt: skip
    losses = json.loads(done.stdout.splitlines()[-1])
    tolerance = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 1e-1}[precision]
    assert losses == pytest.approx(expected.losses, abs=tolerance)


@pytest.mark.parametrize("recipe", ["bert-tiny", "deberta-tiny", "electra-tiny"])
@pytest.mark.parametrize(("length", "is_strict"), [(128, False), (256, True)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(recipe, length, is_strict):
    """Fused attention adds in any order for rows over 128 tokens, unless told otherwise."""
    config = override_all(RECIPES[recipe](), {
        "sequence_length": length, "model.max_position_embeddings": length,
        "model.vocab_size": 512, "model.hidden_dropout_prob": 0.1,
        "train.global_batch_size": 16, "train.micro_batch_size": 8,
    })  # fmt: skip

    def made(seed: int) -> Trainer:
        torch.manual_seed(seed)
        built = stand_in_objective(config)
        device = torch.device("cuda")
        engine = TorchEngine(
            built, config.optim, device=device, precision=choose_precision("auto", device)
        )
        source = CorruptedRows(
            lambda start, count: random_rows(config, count, np.random.default_rng(start)),
            built.corrupt, batch_size=lambda fraction: 16, micro_batch_size=8, seed=0,
        )  # fmt: skip
        built.train()
        return Trainer(
            objective=built, engine=engine, batches=source, budget=Budget(),
            learning_rate=lambda progress: 1e-3,
        )  # fmt: skip

    with deterministic(is_strict):
        whole, saved = made(0), None
        for step in range(12):
            if step == 5:
                weights = {n: w.clone() for n, w in whole.engine.weights().items()}
                state = copy.deepcopy(whole.engine.state_dict())
                saved = weights, state, random_state(), whole.progress.state_dict()
            whole.train_step()
        resumed = made(1)
        resumed.engine.load_weights(saved[0])
        resumed.engine.load_state_dict(saved[1])
        resumed.progress = Progress(**saved[3])
        restore_random_state(saved[2])
        for _ in range(12 - 5):
            resumed.train_step()
    expected = whole.engine.weights()
    found = resumed.engine.weights()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def run_on_gpu(precision: str) -> tuple[Trainer, Losses]:
    made, losses = on_gpu(precision)
    assert made.run()
    return made, losses


def test_a_card_that_is_too_small_is_noticed_and_the_step_undone():
    made, _ = on_gpu("fp32", num_steps=3)
    made.train_step()
    before = {name: weight.clone() for name, weight in made.engine.weights().items()}
    forward, hog = made.engine.forward, []

    def hungry(batch):
        hog.append(torch.empty(2**40, device="cuda"))  # four terabytes
        return forward(batch)

    made.engine.forward = hungry
    with pytest.raises(MemoryExhaustedError) as caught:
        made.train_step()
    assert caught.value.is_undone
    assert all(torch.equal(made.engine.weights()[name], weight) for name, weight in before.items())
    assert made.progress.step == 1
