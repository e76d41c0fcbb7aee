"""Cross-entropy over the vocabulary together with the product that makes the logits.

The logits of a step are its largest tensors, many times the encoder's activations. Here they exist
once, in the precision of the product: each block of rows becomes, while it is in the cache, its
share of the loss, its samples and its gradient, which overwrites it. No M × V of float32 is ever
stored.

Shapes: M targets, E embedding size, V rows of the output matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smallbench.models.kernels.dispatch import is_on_cpu, operator

CPU_BLOCK_ELEMENTS = 1 << 20
"""Elements of a float32 block: 4 MiB, which fit in two cores' caches between the passes."""

GPU_BLOCK_ELEMENTS = 1 << 24
"""64 MiB: enough for each kernel to fill a GPU."""


class TokenLoss(NamedTuple):
    """Loss and statistics of the targets."""

    loss: Tensor
    """Cross-entropy summed over the targets."""
    guesses: Tensor | None
    """M, the most likely token of each target."""
    samples: Tensor | None
    """M, a token drawn from each target's softmax."""


def token_loss(
    features_ME: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_ids_M: Tensor,
    *,
    vocab_size: int,
    guess: bool = False,
    uniforms_M: Tensor | None = None,
) -> TokenLoss:
    """Return the loss of `features @ weightᵀ + bias`; with `uniforms_M`, also samples.

    Rows of the weight from `vocab_size` on are padding: they are in the softmax and its gradient,
    but are never guessed or drawn.
    """
    if torch.is_autocast_enabled(features_ME.device.type):
        dtype = torch.get_autocast_dtype(features_ME.device.type)
    else:
        dtype = features_ME.dtype
    leaves = (features_ME, weight_VE, bias_V)
    # Autograd is always off inside a function, so pass its state.
    needs_gradient = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    arguments = (*leaves, target_ids_M, uniforms_M, vocab_size, guess, dtype, needs_gradient)
    if torch.compiler.is_compiling():
        # One operator for any M; traced, the loop over blocks would be compiled again for each M.
        loss, guesses, samples, *_ = _operator(*arguments)
        return TokenLoss(loss, guesses if guess else None, None if uniforms_M is None else samples)
    with torch.autocast(features_ME.device.type, enabled=False):
        outputs = _TokenLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    return TokenLoss(*outputs)


def sample(weights_MV: Tensor, uniforms_M: Tensor) -> Tensor:
    """Return one column of each row, drawn in proportion to the row's weights.

    Inverts the distribution function at `uniforms_M` in [0, 1).
    """
    is_strict = torch.are_deterministic_algorithms_enabled()
    if is_strict:  # CUDA's scan of each row is deterministic, but PyTorch refuses every float one
        torch.use_deterministic_algorithms(False)
    cumulated_MV = weights_MV.cumsum(dim=-1)
    if is_strict:
        torch.use_deterministic_algorithms(True)
    heights_M1 = uniforms_M[:, None] * cumulated_MV[:, -1:]  # rounding: the sum may be below 1
    columns_M = torch.searchsorted(cumulated_MV, heights_M1, right=True).squeeze(1)
    return columns_M.clamp(max=weights_MV.shape[1] - 1)


def _compute(
    features_ME: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_ids_M: Tensor,
    uniforms_M: Tensor | None,
    vocab_size: int,
    guess: bool,
    dtype: torch.dtype,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
    """Return loss, guesses, samples, and the gradients of features, weight and bias.

    The gradients are computed together with the logits.
    """
    features, weight, bias = (t.to(dtype) for t in (features_ME, weight_VE, bias_V))
    logits_MV = torch.addmm(bias, features, weight.T)
    loss = torch.zeros((), device=logits_MV.device)
    guesses, samples = [], []
    block_elements = CPU_BLOCK_ELEMENTS if is_on_cpu(logits_MV) else GPU_BLOCK_ELEMENTS
    rows = max(1, block_elements // logits_MV.shape[1])
    grad_bias = torch.zeros(logits_MV.shape[1], device=logits_MV.device)
    for first in range(0, logits_MV.shape[0], rows):
        part = slice(first, first + rows)
        scores = logits_MV[part].float()
        targets = target_ids_M[part, None]
        if guess:
            guesses.append(scores[:, :vocab_size].argmax(dim=-1))
        scores -= scores.amax(dim=-1, keepdim=True)
        target_scores = scores.gather(1, targets)
        weights = scores.exp_()  # of which the softmax is a multiple
        totals = weights.sum(dim=-1, keepdim=True)
        loss += (totals.log() - target_scores).sum()
        if uniforms_M is not None:
            samples.append(sample(weights[:, :vocab_size], uniforms_M[part]))
        if needs_gradient:
            weights.scatter_add_(1, targets, -totals)
            logits_MV[part] = weights.mul_(1 / totals)
            grad_bias += weights.sum(dim=0)
    gradients = (logits_MV @ weight, logits_MV.T @ features, grad_bias) if needs_gradient else ()
    indices = [torch.cat(part) if part else None for part in (guesses, samples)]
    return loss, *indices, gradients  # type: ignore[return-value]


def _gradients(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Return the saved gradients times that of the loss, and None for the other arguments.

    Converted to float32 before scaling: a loss scale could exceed the range of float16.
    """
    pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    scaled = ((gradient.float() * grad_loss).to(dtype) for gradient, dtype in pairs)
    return (*scaled, *[None] * 6)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        loss, *indices, gradients = _compute(*arguments)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [leaf.dtype for leaf in arguments[:3]]
        ctx.mark_non_differentiable(*(i for i in indices if i is not None))
        return loss, *indices  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_loss)


def _computed(
    features_ME: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_ids_M: Tensor,
    uniforms_M: Tensor | None,
    vocab_size: int,
    guess: bool,
    dtype: torch.dtype,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run `_compute` as an operator for compilers; empty tensors stand for missing ones."""
    with torch.autocast(features_ME.device.type, enabled=False):
        loss, guesses, samples, gradients = _compute(
            features_ME, weight_VE, bias_V, target_ids_M, uniforms_M, vocab_size, guess, dtype,
            needs_gradient,
        )  # fmt: skip
    indices = [target_ids_M.new_empty(0) if i is None else i for i in (guesses, samples)]
    return loss, *indices, *(gradients or [loss.new_empty(0) for _ in range(3)])


def _fake(
    features_ME: Tensor, weight_VE: Tensor, bias_V: Tensor, target_ids_M: Tensor,
    uniforms_M: Tensor | None, vocab_size: int, guess: bool, dtype: torch.dtype,
    needs_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    count = target_ids_M.shape[0]
    shapes = [features_ME.shape, weight_VE.shape, bias_V.shape] if needs_gradient else [[0]] * 3
    dtypes = [dtype, dtype, torch.float32] if needs_gradient else [torch.float32] * 3
    return (
        features_ME.new_empty((), dtype=torch.float32),
        target_ids_M.new_empty(count if guess else 0),
        target_ids_M.new_empty(0 if uniforms_M is None else count),
        *(features_ME.new_empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[3:])
    ctx.dtypes = [leaf.dtype for leaf in inputs[:3]]


_operator = operator(
    "token_loss", _computed, _fake, backward=_gradients, setup_context=_keep_gradients
)
