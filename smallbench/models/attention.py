"""Scaled dot-product attention by the fastest exact way of each device.

On CUDA this is PyTorch's fused kernel. On a CPU that kernel's backward pass took three to four
times as long as the products written out (32 x 4 x 128 x 128 scores in bf16, and with dropout it is
not fused at all), so there they are written out.

Shapes: B rows, H heads, L positions, d size of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smallbench.models.dropout import dropout


def attend(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLd: Tensor,
    *,
    mask_B11L: Tensor | None,
    dropout_prob: float,
) -> Tensor:
    """Context_BHLd (Vaswani et al. 2017, §3.2.1); the mask is True where a key may be seen."""
    if q_BHLd.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q_BHLd, k_BHLd, v_BHLd, attn_mask=mask_B11L, dropout_p=dropout_prob
        )
    # Autocast would run the softmax in float32 copies; its sums are float32 inside anyway.
    with torch.autocast("cpu", enabled=False):
        scores_BHLL = (q_BHLd * (1 / math.sqrt(q_BHLd.shape[-1]))) @ k_BHLd.transpose(-1, -2)
        return _weighted(scores_BHLL, v_BHLd, mask_B11L, dropout_prob)


def attend_with_bias(
    q_HBLd: Tensor,
    k_HBLd: Tensor,
    v_HBLd: Tensor,
    bias_HBLL: Tensor,
    *,
    mask_1B1L: Tensor | None,
    dropout_prob: float,
) -> Tensor:
    """Context_HBLd of the scores `q·k + bias`; queries come in scaled."""
    if q_HBLd.device.type != "cpu":
        if mask_1B1L is not None:
            bias_HBLL = bias_HBLL.masked_fill(~mask_1B1L, -math.inf)
        return F.scaled_dot_product_attention(
            q_HBLd, k_HBLd, v_HBLd, attn_mask=bias_HBLL, dropout_p=dropout_prob, scale=1.0
        )
    scores_HBLL = q_HBLd @ k_HBLd.transpose(-1, -2) + bias_HBLL
    return _weighted(scores_HBLL, v_HBLd, mask_1B1L, dropout_prob)


def _weighted(scores: Tensor, values: Tensor, mask: Tensor | None, dropout_prob: float) -> Tensor:
    """`dropout(softmax(scores)) @ values`."""
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return dropout(scores.softmax(dim=-1), dropout_prob) @ values
