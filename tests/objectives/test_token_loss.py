"""The fused loss is cross-entropy of the product, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from smallbench.models.kernels import token_loss as module
from smallbench.models.kernels.token_loss import _operator, sample, token_loss


def inputs(num_targets=37, size=16, num_rows=90):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_targets, size, generator=generator).requires_grad_()
    weight = torch.randn(num_rows, size, generator=generator).requires_grad_()
    bias = torch.randn(num_rows, generator=generator).requires_grad_()
    targets = torch.randint(0, 80, (num_targets,), generator=generator)
    return features, weight, bias, targets


@pytest.mark.parametrize("block", [1, 10 * 90, 1 << 22], ids=["rows", "blocks", "one block"])
def test_loss_and_gradients_equal_the_unfused(block, monkeypatch):
    monkeypatch.setattr(module, "CPU_BLOCK_ELEMENTS", block)
    *leaves, targets = inputs()
    found = token_loss(*leaves, targets, vocab_size=80)
    expected = F.cross_entropy(F.linear(*leaves), targets, reduction="sum")
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=1e-4)
    gradients = torch.autograd.grad(found.loss * 0.25, leaves)
    expected_gradients = torch.autograd.grad(expected * 0.25, leaves)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_under_autocast_it_is_near_float32_and_gradients_keep_the_parameters_type():
    *leaves, targets = inputs()
    exact = token_loss(*leaves, targets, vocab_size=80)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_loss(leaves[0].bfloat16(), *leaves[1:], targets, vocab_size=80)
    assert rounded.loss.dtype == torch.float32
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    rounded.loss.backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
    (expected,) = torch.autograd.grad(exact.loss, leaves[1:2])
    assert F.cosine_similarity(leaves[1].grad.flatten(), expected.flatten(), dim=0) > 0.999


def test_guesses_are_the_best_tokens_and_never_padding():
    *leaves, targets = inputs()
    found = token_loss(*leaves, targets, vocab_size=80, guess=True)
    assert torch.equal(found.guesses, F.linear(*leaves)[:, :80].argmax(dim=-1))
    assert found.samples is None


def test_samples_are_those_of_the_softmax_without_padding():
    *leaves, targets = inputs()
    uniforms = torch.rand(len(targets), generator=torch.Generator().manual_seed(1))
    found = token_loss(*leaves, targets, vocab_size=80, uniforms_M=uniforms)
    weights = F.linear(*leaves)[:, :80].softmax(dim=-1)
    assert torch.equal(found.samples, sample(weights, uniforms))
    with torch.no_grad():
        again = token_loss(*leaves, targets, vocab_size=80, uniforms_M=uniforms)
    assert torch.equal(again.samples, found.samples)


def test_samples_follow_the_weights():
    weights = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).expand(40_000, 4)
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(sample(weights, uniforms), minlength=4) / 40_000
    torch.testing.assert_close(frequencies, weights[0], rtol=0, atol=0.01)
    assert frequencies[2] == 0, "what is impossible is never drawn"


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 2), (1 - 2**-24, 4)])
def test_samples_at_the_ends_are_possible_tokens(uniform, expected):
    weights = torch.zeros(1, 7)
    weights[0, 2:5] = 1 / 3
    assert sample(weights, torch.tensor([uniform])).item() == expected


@pytest.mark.gpu
def test_fp16_with_a_loss_scale_on_a_gpu():
    *leaves, targets = (tensor.detach().cuda() for tensor in inputs())
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.autocast("cuda", torch.float16):
        loss = token_loss(*leaves, targets, vocab_size=80).loss
    (loss * 2.0**14).backward()
    exact = F.cross_entropy(F.linear(*leaves), targets, reduction="sum")
    (expected,) = torch.autograd.grad(exact * 2.0**14, leaves[1:2])
    assert leaves[1].grad.isfinite().all()
    assert F.cosine_similarity(leaves[1].grad.flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_the_compilers_operator_says_its_shapes_and_types(dtype, needs_gradient):
    """Also under autocast, where gradients have the product's type and that of the bias float32."""
    leaves = [torch.randn(shape) for shape in ((5, 4), (12, 4), (12,))]
    arguments = (*leaves, torch.arange(5), torch.rand(5), 10, True, dtype, needs_gradient)
    torch.library.opcheck(_operator, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("with_uniforms", [False, True])
def test_the_compilers_operator_keeps_pytorchs_rules(guess, with_uniforms):
    """Fake tensors have the real ones' shapes and types, also in the backward pass."""
    leaves = [torch.randn(s, requires_grad=True) for s in ((5, 4), (12, 4), (12,))]
    uniforms = torch.rand(5) if with_uniforms else None
    arguments = (*leaves, torch.arange(5), uniforms, 10, guess, torch.float32, True)
    torch.library.opcheck(_operator, arguments)
