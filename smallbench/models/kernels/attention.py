"""Scaled dot-product attention by the fastest exact method of each device.

On CUDA this is PyTorch's fused kernel. On a CPU, its backward pass took three to four times as long
as explicit products (32 x 4 x 128 x 128 scores in bf16; with dropout it is not fused at all). So
there forward and backward pass are explicit, with every intermediate laid out for the next product.
A compiler gets PyTorch's on every device. Shapes: X and Y are rows and heads in either order, L
positions, d size of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smallbench.models.kernels.dispatch import use_cpu_kernels
from smallbench.models.kernels.dropout import draw_scaled_mask


def attend(
    q_XYLd: Tensor,
    k_XYLd: Tensor,
    v_XYLd: Tensor,
    *,
    scale: float,
    dropout_prob: float,
    bias_XYLL: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`dropout(softmax(scale q·k + bias)) v`, context_XYLd (Vaswani et al. 2017, §3.2.1).

    `mask` broadcasts to XYLL and is True if a key may be seen.
    """
    if use_cpu_kernels(q_XYLd):
        # Autocast would convert the softmax to float32; its sums are float32 inside anyway.
        with torch.autocast("cpu", enabled=False):
            return _WrittenOut.apply(  # type: ignore[no-any-return, no-untyped-call]
                q_XYLd, k_XYLd, v_XYLd, bias_XYLL, mask, scale, dropout_prob
            )
    if bias_XYLL is not None:
        mask = bias_XYLL if mask is None else bias_XYLL.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(
        q_XYLd, k_XYLd, v_XYLd, attn_mask=mask, dropout_p=dropout_prob, scale=scale
    )


class _WrittenOut(torch.autograd.Function):
    """Batched products of contiguous matrices [N, L, d] and [N, L, L], N = X Y."""

    @staticmethod
    def forward(
        ctx: Any,
        q_XYLd: Tensor,
        k_XYLd: Tensor,
        v_XYLd: Tensor,
        bias_XYLL: Tensor | None,
        mask: Tensor | None,
        scale: float,
        dropout_prob: float,
    ) -> Tensor:
        q, k, v = (t.flatten(0, 1).contiguous() for t in (q_XYLd, k_XYLd, v_XYLd))
        if bias_XYLL is None:
            no_bias = q.new_empty(1, 1, 1)  # beta is 0: it is never read
            scores = torch.baddbmm(no_bias, q, k.transpose(1, 2), beta=0, alpha=scale)
        else:
            scores = torch.baddbmm(bias_XYLL.flatten(0, 1), q, k.transpose(1, 2), alpha=scale)
        if mask is not None:
            shape = (*q_XYLd.shape[:2], *scores.shape[1:])
            scores = scores.view(shape).masked_fill_(~mask, -math.inf).flatten(0, 1)
        weights = scores.softmax(dim=-1)
        keep = draw_scaled_mask(weights, dropout_prob) if dropout_prob else None
        kept = weights if keep is None else weights * keep
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.scale, ctx.shape, ctx.has_bias = scale, q_XYLd.shape, bias_XYLL is not None
        return torch.bmm(kept, v).view(q_XYLd.shape)

    @staticmethod
    def backward(ctx: Any, grad_context: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, keep = ctx.saved_tensors
        grad = grad_context.flatten(0, 1).contiguous()
        kept = weights if keep is None else weights * keep
        grad_v = torch.bmm(kept.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        if keep is not None:
            grad_weights *= keep
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        unread = q.new_empty(1, 1, 1)
        grad_q = torch.baddbmm(unread, grad_scores, k, beta=0, alpha=ctx.scale)
        grad_k = torch.baddbmm(unread, grad_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        grad_bias = grad_scores.view(*ctx.shape[:2], *grad_scores.shape[1:])
        return (
            *(g.view(ctx.shape) for g in (grad_q, grad_k, grad_v)),
            grad_bias if ctx.has_bias else None,
            None,
            None,
            None,
        )
