"""A residual stream in half precision: nearly the same losses, and float32 statistics."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smallbench.config import override_all
from smallbench.errors import ConfigError
from smallbench.models.encoder import Norm, half_residual
from smallbench.objectives.masking import micro_batches, step_generator
from smallbench.pretraining.machine import choose_machine
from smallbench.recipes import RECIPES
from smallbench.train.build import build_objective
from tests.train.tiny import VOCABULARY, take

TINY = ["bert-tiny", "roberta-tiny", "deberta-tiny", "electra-tiny", "modern-tiny"]


class Norms(TorchDispatchMode):
    """The types that each layer norm returns: values, mean, inverse deviation."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm.default:
            self.types.append(tuple(t.dtype for t in result))
        return result


def losses(recipe: str, *, half: bool):
    """The sum of losses of one batch in bf16, the norm of its gradient, and the norms' types."""
    values = {"model.vocab_size": VOCABULARY.size, "train.half_residual": half}
    config = override_all(RECIPES[recipe](), values)
    torch.manual_seed(0)
    objective = build_objective(config, VOCABULARY)
    assert {part.is_half for part in objective.modules() if isinstance(part, Norm)} == {half}
    (batch,) = micro_batches(objective.corrupt(take(0, 8), step_generator(0, 0)), 8)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16), Norms() as norms:
        loss = sum(objective(batch).losses.values())
    loss.backward()
    gradients = [p.grad.norm() for p in objective.parameters() if p.grad is not None]
    return loss.item(), torch.stack(gradients).norm().item(), norms.types


@pytest.mark.parametrize("recipe", TINY)
def test_loss_and_gradient_stay_close_and_statistics_are_float32(recipe):
    loss, norm, usual = losses(recipe, half=False)
    half_loss, half_norm, types = losses(recipe, half=True)
    assert half_loss == pytest.approx(loss, rel=2e-3)
    assert half_norm == pytest.approx(norm, rel=2e-2)
    assert {kind for found in (*usual, *types) for kind in found[1:]} == {torch.float32}
    num_float32 = [[found[0] for found in each].count(torch.float32) for each in (usual, types)]
    assert num_float32[1] < num_float32[0] / 2


def test_without_autocast_the_results_are_the_same_bit_for_bit():
    norm, values = Norm(8), torch.randn(4, 8)
    expected = norm(values)
    half_residual(norm)
    assert torch.equal(norm(values), expected)


def test_float32_runs_refuse_a_half_precision_stream():
    values = {"train.half_residual": True, "train.precision": "fp32", "train.device": "cpu"}
    with pytest.raises(ConfigError, match=r"train.half_residual needs precision bf16 or fp16"):
        choose_machine(override_all(RECIPES["bert-tiny"](), values))
