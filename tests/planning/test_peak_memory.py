"""The planned memory of a step is what a process measures, on this CPU and on a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smallbench.planning.planner import Planner, usable_bytes
from smallbench.train.engine import EngineChoice
from smallbench.train.memory import PeakMeter
from smallbench.train.precision import choose_precision
from tests.planning.test_plan import recipe_of

ROOT = Path(__file__).parents[2]


def measured(name, engine, offload, **values):
    """What a process of its own needs for three steps."""
    changes = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "tests.planning.peak_memory", name, engine, offload, *changes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["are_finite"]
    return result["peak_bytes"]


def planned(name, engine, offload, **values):
    config = recipe_of(name, **values)
    planner = Planner(config, device_type="cpu", precision=config.train.precision)
    way = (EngineChoice(engine, offload), config.train.checkpoint_activations)
    memory = planner.memory(way, config.train.rows_per_forward)
    return memory.peak + memory.host  # which are one memory here


FAST = choose_precision("auto", torch.device("cpu"))
"""bf16, but fp32 on a CPU that would emulate it and take an hour."""
BATCH_8 = {"train__global_batch_size": 8, "train__precision": FAST}
BATCH_16 = {"train__global_batch_size": 16, "train__precision": FAST}
BATCH_32 = {"train__global_batch_size": 32, "train__precision": FAST}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bert-small", BATCH_32),
        ("bert-small", {**BATCH_8, "train__checkpoint_activations": True}),
        ("electra-deberta-small", BATCH_16),
        *(
            pytest.param(name, {**BATCH_32, **values}, marks=pytest.mark.exhaustive)
            for name, values in [
                ("bert-small", {"train__precision": "fp32"}),
                ("bert-small", {"train__precision": "fp32", "train__checkpoint_activations": True}),
                ("bert-small", {"train__checkpoint_activations": True}),
                ("bert-small", {"train__micro_batch_size": 8}),
                ("electra-deberta-small", {}),
                ("roberta-small", {}),
                ("deberta-small", {}),
                ("electra-small", {}),
            ]
        ),
    ],
)
def test_peak_memory_is_as_planned_with_torch(name, values):
    assert planned(name, "torch", "none", **values) == pytest.approx(
        measured(name, "torch", "none", **values), rel=0.15
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "offload", "batch"),
    [
        *(
            pytest.param(name, offload, BATCH_32, marks=pytest.mark.exhaustive)
            for name in ("bert-small", "roberta-small", "deberta-small", "electra-small")
            for offload in ("parameters", "none", "optimizer")
        ),
        ("bert-small", "parameters", BATCH_8),
        ("roberta-small", "none", BATCH_8),
        ("deberta-small", "optimizer", BATCH_8),
        ("electra-small", "parameters", BATCH_8),
    ],
)
def test_peak_memory_is_as_planned_with_deepspeed(name, offload, batch):
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    assert planned(name, "deepspeed", offload, **batch) == pytest.approx(
        measured(name, "deepspeed", offload, **batch), rel=0.15
    )


@pytest.mark.slow
def test_a_model_four_times_bert_base_steps_with_zero_offload():
    """436M parameters, about 11 GB of memory."""
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    values = {
        "model__num_hidden_layers": 32, "train__global_batch_size": 2, "train__micro_batch_size": 1,
        "train__precision": FAST,
    }  # fmt: skip
    peak = measured("bert-large", "deepspeed", "optimizer", **values)
    assert planned("bert-large", "deepspeed", "optimizer", **values) == pytest.approx(
        peak, rel=0.15
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bert-small", "roberta-small", "deberta-small", "electra-small"])
@pytest.mark.parametrize("recompute", [False, True])
def test_peak_memory_is_as_planned_on_a_gpu(name, recompute):
    from tests.planning.peak_memory import train

    device = torch.device("cuda")
    values = {"train__global_batch_size": 64, "train__precision": "fp16"}
    config = recipe_of(name, train__checkpoint_activations=recompute, **values)
    meter = PeakMeter(device)
    train(config, EngineChoice(), num_steps=3, device=device)
    planner = Planner(config, device_type="cuda", precision="fp16")
    memory = planner.memory((EngineChoice(), recompute), 64)
    assert memory.peak == pytest.approx(meter.peak_bytes(), rel=0.15)
    assert memory.peak <= usable_bytes(torch.cuda.get_device_properties(0).total_memory)
