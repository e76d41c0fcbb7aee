"""The plain engine's own state: a loss scale fits a scaler that has not stepped yet."""

import pytest
import torch

from smallbench.train.config import OptimConfig
from smallbench.train.engine import TorchEngine, load_loss_scale
from tests.train.tiny import objective

CPU = torch.device("cpu")


def engine(precision="fp16"):
    return TorchEngine(objective(), OptimConfig(), device=CPU, precision=precision)


def test_the_scale_of_another_engine_is_taken_by_a_fresh_scaler_and_by_a_used_one():
    """DeepSpeed's state has other names for all but the scale."""
    made = engine()
    for scale in (512.0, 64.0):
        load_loss_scale(made.scaler, {"scale": scale, "cur_iter": 7, "raise_error_at_min": True})
        assert made.scaler.get_scale() == scale
        assert made.scaler.scale(torch.ones(())).item() == scale


def test_its_own_state_comes_back_whole():
    made, again = engine(), engine()
    made.scaler.load_state_dict({**made.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5})
    again.load_state_dict(made.state_dict())
    assert again.scaler.state_dict() == made.scaler.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_scale_of_its_own_it_takes_none(precision):
    made = engine(precision)
    made.load_state_dict({**made.state_dict(), "scaler": {"scale": 512.0}})
    assert made.state_dict()["scaler"] == {}
