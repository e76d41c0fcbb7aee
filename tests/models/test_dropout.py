"""Our dropout is dropout: its rate, its mean, its gradient, its independence, its repeatability."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest
import torch

from smallbench.models.kernels import dropout as kernel
from smallbench.models.kernels.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_rate_and_mean_are_the_asked_ones(probability, dtype):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1000, 1001, dtype=dtype), probability)
    assert dropped.dtype == dtype
    zeros = (dropped == 0).double().mean().item()
    assert zeros == pytest.approx(probability, abs=0.002)
    kept = dropped[dropped != 0]
    assert (kept == kept[0]).all()
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=0.005)


def test_neighbours_are_independent():
    """Four elements share a draw; no two of them may depend on each other."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3) == 0).float().view(-1, 8)
    covariance = torch.cov(dropped.T)
    off_diagonal = covariance - covariance.diagonal().diag()
    torch.testing.assert_close(covariance.diagonal(), torch.full((8,), 0.21), rtol=0, atol=0.004)
    assert off_diagonal.abs().max() < 0.004


def test_the_gradient_goes_where_the_values_went():
    values = torch.randn(64, 33, requires_grad=True)
    dropped = dropout(values, 0.4)
    dropped.sum().backward()
    assert torch.equal(values.grad == 0, dropped == 0)
    torch.testing.assert_close(values.grad * values, dropped)


def test_the_global_generator_decides_whatever_the_layout():
    values = torch.randn(6, 10)
    torch.manual_seed(3)
    first = dropout(values, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(values.T.contiguous().T, 0.5), first)
    assert not torch.equal(dropout(values, 0.5), first)


def test_nothing_is_dropped_at_zero_or_in_evaluation():
    values = torch.randn(5, 5)
    state = torch.get_rng_state()
    assert dropout(values, 0.0) is values
    assert Dropout(0.5).eval()(values) is values
    assert torch.equal(torch.get_rng_state(), state), "and no number is drawn"


def test_a_copy_of_the_module_uses_the_operator_that_is_registered():
    """An export with code brings copies; a second registration would free the first operator."""
    registered = torch.ops.smallbench.random_levels.default
    loader = SourceFileLoader("a_copy_of_dropout", kernel.__file__)
    copy = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(copy)
    assert torch.ops.smallbench.random_levels.default is registered
    torch.manual_seed(0)
    levels = kernel.random_levels(5)
    torch.manual_seed(0)
    assert torch.equal(copy.random_levels(5), levels)
