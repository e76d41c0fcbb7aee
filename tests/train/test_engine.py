"""The plain engine's own state: a loss scale fits a scaler that has not stepped yet."""

import warnings

import pytest
import torch

from smallbench.errors import ConfigError
from smallbench.models.kernels.token_loss import sample
from smallbench.objectives.replaced_token import ReplacedToken
from smallbench.train import precision
from smallbench.train.config import AdamWConfig
from smallbench.train.determinism import deterministic
from smallbench.train.engine import TorchEngine, load_loss_scale
from smallbench.train.precision import choose_precision
from tests.train.tiny import objective

CPU = torch.device("cpu")


def engine(precision="fp16"):
    return TorchEngine(objective(), AdamWConfig(), device=CPU, precision=precision)


def test_the_scale_of_another_engine_is_taken_by_a_fresh_scaler_and_by_a_used_one():
    """DeepSpeed's state has other names for all but the scale."""
    made = engine()
    for scale in (512.0, 64.0):
        load_loss_scale(made.scaler, {"scale": scale, "cur_iter": 7, "raise_error_at_min": True})
        assert made.scaler.get_scale() == scale
        assert made.scaler.scale(torch.ones(())).item() == scale


def test_its_own_state_is_restored_completely():
    made, again = engine(), engine()
    made.scaler.load_state_dict({**made.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5})
    again.load_state_dict(made.state_dict())
    assert again.scaler.state_dict() == made.scaler.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_scale_of_its_own_it_takes_none(precision):
    made = engine(precision)
    made.load_state_dict({**made.state_dict(), "scaler": {"scale": 512.0}})
    assert made.state_dict()["scaler"] == {}


@pytest.mark.parametrize(
    ("capability", "is_refused"), [((7, 0), True), ((7, 5), True), ((8, 0), False), ((9, 0), False)]
)
def test_bf16_is_refused_if_a_gpu_would_emulate_it(capability, is_refused, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    assert choose_precision("auto", device) == ("fp16" if is_refused else "bf16")
    if is_refused:
        with pytest.raises(ConfigError, match=r"V100-SXM2-16GB \(sm_7\d\) has no bf16 units"):
            choose_precision("bf16", device)
    else:
        assert choose_precision("bf16", device) == "bf16"


@pytest.mark.parametrize(
    ("flags", "is_slow"),
    [({"avx2"}, True), ({"avx2", "avx512f"}, True), ({"avx512_bf16"}, False), ({"bf16"}, False)],
)
def test_bf16_on_a_cpu_that_emulates_it_is_said_once(flags, is_slow, monkeypatch, capfd):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    precision._warn_of_emulated_bf16.cache_clear()
    assert choose_precision("auto", CPU) == ("fp32" if is_slow else "bf16")
    assert "bf16" not in capfd.readouterr().err
    for _ in range(2):
        assert choose_precision("bf16", CPU) == "bf16"
    assert capfd.readouterr().err.count("slower than fp32") == is_slow


def test_a_loss_scale_begins_where_the_objective_says():
    made = objective()
    assert (
        TorchEngine(made, AdamWConfig(), device=CPU, precision="fp16").scaler.get_scale() == 2**16
    )
    made.initial_loss_scale = ReplacedToken.initial_loss_scale
    assert TorchEngine(made, AdamWConfig(), device=CPU, precision="fp16").scaler.get_scale() == 2048


def test_deterministic_kernels_are_asked_for_within_the_block_alone(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for is_on in (False, True):
        with deterministic(is_on):
            assert torch.are_deterministic_algorithms_enabled() == is_on
            weights = torch.rand(3, 4)
            with warnings.catch_warnings(action="error"):
                drawn = sample(weights, torch.rand(3))
            assert drawn.shape == (3,)
            assert torch.are_deterministic_algorithms_enabled() == is_on
    assert not torch.are_deterministic_algorithms_enabled()
