"""Attention written out for CPUs is attention: values, gradients, masks, dropout."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from smallbench.models.kernels.attention import attend
from smallbench.models.kernels.dropout import dropout

SCALE = 0.3


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 10, 4)] * 3 + [(2, 3, 10, 10)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_equal_pytorchs(biased, masked):
    *qkv, bias = inputs()
    mask = torch.arange(10) < torch.tensor([10, 6])[:, None, None, None] if masked else None
    leaves = [*qkv, bias] if biased else qkv
    found = attend(
        *qkv, scale=SCALE, dropout_prob=0.0, bias_XYLL=bias if biased else None, mask=mask
    )
    added = bias if biased else torch.zeros_like(bias)
    if masked:
        added = added.masked_fill(~mask, -math.inf)
    expected = scaled_dot_product_attention(*qkv, attn_mask=added, scale=SCALE)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    gradients = torch.autograd.grad((found * probe).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), leaves)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_is_on_the_weights_forward_and_backward():
    *qkv, _ = inputs()
    torch.manual_seed(5)
    found = attend(*qkv, scale=SCALE, dropout_prob=0.4)
    torch.manual_seed(5)
    q, k, v = qkv
    weights = dropout((SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1), 0.4)
    torch.testing.assert_close(found, weights @ v)
    probe = torch.randn_like(found)
    gradients = torch.autograd.grad((found * probe).sum(), qkv)
    expected = torch.autograd.grad((weights @ v * probe).sum(), qkv)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_the_inputs_type():
    *qkv, _ = inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*qkv, scale=SCALE, dropout_prob=0.1)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in qkv)
