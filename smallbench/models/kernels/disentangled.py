"""DeBERTa's position terms (He et al. 2021, §3.1), with a gradient written in one pass.

Shapes: H heads, B rows, L positions, R = 2 L relative positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def skew(products_LR: Tensor) -> Tensor:
    """[…, L, 2 L] → […, L, L]: out[i, j] = products[i, j − i + L], without copying.

    Element (i, j − i + L) lies at i·2L + j − i + L = i·(2L − 1) + j + L: a matrix with rows of
    2L − 1, from the L-th element on.
    """
    length = products_LR.shape[-2]
    flat = products_LR.flatten(-2)[..., length : length + length * (2 * length - 1)]
    rows = torch.unflatten(flat, -1, (length, 2 * length - 1))
    return rows[..., :length]


def position_bias(c2p_HBLR: Tensor, p2c_HBLR: Tensor) -> Tensor:
    """Both position terms of the scores, HBLL, from their products with all R positions."""
    if torch.compiler.is_compiling():
        return skew(c2p_HBLR) + skew(p2c_HBLR).transpose(-1, -2)
    return _PositionBias.apply(c2p_HBLR, p2c_HBLR)  # type: ignore[no-any-return, no-untyped-call]


class _PositionBias(torch.autograd.Function):
    """Writes its gradient directly; autograd's uses two more tensors of twice the size."""

    @staticmethod
    def forward(ctx: Any, c2p_HBLR: Tensor, p2c_HBLR: Tensor) -> Tensor:
        ctx.shape = c2p_HBLR.shape
        return skew(c2p_HBLR) + skew(p2c_HBLR).transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, grad_HBLL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of c2p and p2c: zero for products that were not read."""
        grads = [grad_HBLL.new_zeros(ctx.shape) for _ in range(2)]
        skew(grads[0]).copy_(grad_HBLL)
        skew(grads[1]).copy_(grad_HBLL.transpose(-1, -2))
        return grads[0], grads[1]
