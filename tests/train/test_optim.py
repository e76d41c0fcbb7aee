"""Optimizers and schedules: what each row of the tables does, and that its state is exact."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from smallbench.errors import ConfigError, DataError
from smallbench.train import OPTIMIZERS, SCHEDULES
from smallbench.train.budget import Progress
from smallbench.train.build import budget_of, learning_rate_of
from smallbench.train.config import (
    AdafactorConfig,
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    MuonConfig,
    TrainConfig,
)
from smallbench.train.engine import TorchEngine
from smallbench.train.optim import Muon, build_optimizer, orthogonalized, parts_of, states_of
from smallbench.train.precision import DTYPES
from smallbench.train.schedule import linear_decay
from tests.pretraining.test_pretrain import tiny
from tests.train.tiny import Losses, objective, trainer

CPU = torch.device("cpu")
CONFIGS = {
    "adamw": AdamWConfig(learning_rate=1e-2),
    "muon": MuonConfig(learning_rate=1e-2),
    "adafactor": AdafactorConfig(learning_rate=0.3),
}


def run(config, *, num_steps=20, progress=None, before=None):
    losses = Losses()
    made = trainer(num_steps=num_steps, dropout=0.1, progress=progress, callbacks=[losses])
    made.engine = TorchEngine(made.objective, config, device=CPU, precision="fp32")
    made.learning_rate = lambda progress: (
        config.learning_rate * linear_decay(progress.step, total=20, warmup=2)
    )
    if before is not None:
        weights, state, generator = before
        made.engine.load_weights(weights)
        made.engine.load_state_dict(state)
        torch.set_rng_state(generator)
    made.run()
    return made, losses.losses


def test_every_row_has_a_configuration_here():
    assert CONFIGS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_optimizer_learns_and_continues_exactly(name):
    config = CONFIGS[name]
    _, whole = run(config)
    assert sum(whole[-5:]) < sum(whole[:5]) - 0.3
    first, before = run(config, num_steps=7)
    kept = {name: weight.clone() for name, weight in first.engine.weights().items()}
    saved = kept, first.engine.state_dict(), torch.get_rng_state()
    _, after = run(config, progress=Progress(**first.progress.state_dict()), before=saved)
    assert before + after == whole


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_is_kept_by_name_of_every_parameter(name):
    made, _ = run(CONFIGS[name], num_steps=1)
    state = made.engine.state_dict()["optimizer"]
    assert state["optimizer"] == name
    assert state["states"].keys() == dict(made.objective.named_parameters()).keys()


def test_there_is_no_state_before_the_first_step():
    made = objective()
    assert states_of(made, build_optimizer(made, CONFIGS["muon"])) == {}


def test_the_state_of_another_optimizer_or_model_is_refused():
    made, _ = run(CONFIGS["adamw"], num_steps=1)
    state = made.engine.state_dict()
    other = TorchEngine(objective(), CONFIGS["muon"], device=CPU, precision="fp32")
    with pytest.raises(DataError, match=r"of the optimizer 'adamw', but this run uses 'muon'"):
        other.load_state_dict(state)
    name = "model.layers.0.up.weight"
    state["optimizer"]["states"][name]["exp_avg"] = torch.zeros(3, 4)
    with pytest.raises(DataError, match=rf"'exp_avg' of '{name}' has the shape \[3, 4\]"):
        made.engine.load_state_dict(state)


def test_muon_takes_the_matrices_of_hidden_layers_alone():
    made = objective()
    muon, adamw = parts_of(build_optimizer(made, CONFIGS["muon"]))
    names = {parameter: name for name, parameter in made.named_parameters()}
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    assert all(".layers." in name and name.endswith(".weight") for name in by_muon)
    assert {"model.embeddings.tokens.weight", "model.predictor.transform.weight"} <= by_adamw
    assert "model.layers.0.attention_norm.weight" in by_adamw


def test_muon_without_hidden_matrices_is_refused():
    with pytest.raises(ConfigError, match="'muon' requires matrices"):
        build_optimizer(torch.nn.Linear(3, 3), CONFIGS["muon"])


HARDWARE = {"bf16": "avx512_bf16", "fp32": "avx2"}


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
@pytest.mark.parametrize("precision", HARDWARE)
def test_orthogonalizing_leaves_the_directions_of_a_matrix(precision, shape, monkeypatch):
    monkeypatch.setattr("smallbench.train.precision.cpu_flags", lambda: {HARDWARE[precision]})
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = values.clamp(min=0.1 * values.max())
    for scale in (1e-6, 1.0, 1e3):
        found = orthogonalized(left @ torch.diag(scale * values) @ right)
        assert found.dtype == DTYPES[precision]
        core = left.T @ found.float() @ right.T
        assert ((core.diagonal() > 0.6) & (core.diagonal() < 1.25)).all()
        assert (core - torch.diag(core.diagonal())).abs().max() < 0.02


def test_matrices_are_orthogonalized_in_a_type_that_the_hardware_has(monkeypatch):
    monkeypatch.setattr("smallbench.train.precision.cpu_flags", lambda: {"avx2"})
    with Dtypes() as used:
        orthogonalized(torch.randn(4, 6))
    assert used.dtypes == {torch.float32}
    # A V100: no bf16 units, but half-precision ones.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with FakeTensorMode(), Dtypes() as used:
        orthogonalized(torch.empty(4, 6, device="cuda"))
    assert used.dtypes == {torch.float32, torch.float16}


class Dtypes(TorchDispatchMode):
    """Collects the types of all results."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.dtypes.add(result.dtype)
        return result


def test_a_step_of_muon_is_that_of_torch(monkeypatch):
    monkeypatch.setattr("smallbench.train.precision.cpu_flags", lambda: {"avx512_bf16"})
    values = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    torch.manual_seed(0)
    start = [torch.randn(12, 8), torch.randn(8, 8)]
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = Muon(ours, **values), torch.optim.Muon(theirs, **values)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=0.01, rtol=0)


def test_adafactor_keeps_almost_nothing():
    made, _ = run(CONFIGS["adafactor"], num_steps=1)
    states = made.engine.state_dict()["optimizer"]["states"].values()
    kept = sum(v.numel() for state in states for v in state.values())
    assert kept < 0.3 * sum(p.numel() for p in made.objective.parameters())


@pytest.mark.parametrize(
    "values",
    [
        {"train__engine": "deepspeed"},
        {"train__offload": "optimizer"},
        {"train__zero_stage": 2},
    ],
)
def test_deepspeed_with_another_optimizer_than_adamw_is_refused(values):
    with pytest.raises(ConfigError, match=r"supports optim.optimizer 'adamw' only, not 'muon'"):
        replace(tiny(**values), optim=CONFIGS["muon"])


# Schedules

SHAPES = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(final_rate=0.1),
    "constant": ConstantSchedule(decay_fraction=0.25),
}


def rates(schedule, unit="steps", count=200):
    """The factors of a run of `count` steps, and the one of a step after the last."""
    limit = {"steps": ("max_steps", count), "hours": ("max_hours", count / 3600)}
    limit["flops"] = ("max_flops", float(count))
    name, value = limit[unit]
    config = replace(
        tiny(optim__learning_rate=1.0),
        schedule=LinearSchedule(),
        train=TrainConfig(**{name: value}),
    )
    config = replace(config, schedule=replace(schedule, along=unit, warmup_fraction=0.1))
    rate, budget = learning_rate_of(config), budget_of(config)
    steps = [Progress(step=n, train_seconds=n, train_flops=n) for n in range(count + 1)]
    assert [budget.is_over(step) for step in steps] == [False] * count + [True]
    return [rate(step) for step in steps]


def test_every_row_has_a_shape_here():
    assert SHAPES.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("unit", ["steps", "hours", "flops"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_schedule_rises_peaks_and_falls_along_each_unit(name, unit):
    found = rates(SHAPES[name], unit)
    assert max(found) == found[20] == 1
    assert all(a < b for a, b in pairwise(found[:21]))
    assert all(a >= b for a, b in pairwise(found[20:]))
    assert found == rates(SHAPES[name])


def test_the_end_of_each_schedule_is_what_its_name_says():
    linear, cosine, constant = (rates(SHAPES[name]) for name in ("linear", "cosine", "constant"))
    assert linear[110] == pytest.approx(0.5)
    assert linear[-1] == 0
    assert cosine[110] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1)
    assert constant[20:156] == [1.0] * 136
    assert constant[-1] == 0
    assert constant[178] == pytest.approx(1 - math.sqrt(23 / 45))
