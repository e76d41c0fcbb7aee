"""RoFormer (Su et al. 2021, arXiv 2104.09864): BERT with rotary positions instead of learned ones.

Queries and keys are rotated by their position's angles, so their product depends on the tokens and
on the distance between them. Segments are embedded as in BERT. Computes the function of
transformers' `RoFormerForMaskedLM`, which rotates the pairs (2i, 2i + 1) of a head; ours rotates
(i, i + d/2), and the export reorders the rows. The angles are constants here, as in the paper;
transformers keeps them as a table, which becomes trainable when `from_pretrained` loads it.

Shapes: B rows, L positions, E embedding size, D hidden size, H heads, d size of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.models.bert import Embeddings, SelfAttention
from smallbench.models.config import RoformerConfig
from smallbench.models.encoder import Encoder, Head

THETA = 10_000.0
"""Base of the wavelengths (§3.2.2); transformers' class has no other."""

SAME_TOKEN_SCORE = 12.0
"""Mean score of two equal tokens under `look_at_same_tokens`; of unequal ones it is about 0."""


@dataclass(frozen=True)
class Context:
    """Which keys may be seen (None: all), and the rotation [L, d]."""

    mask: Tensor | None
    cos: Tensor
    sin: Tensor


class RotaryAttention(SelfAttention):
    """Multi-head self-attention with rotated queries and keys (equation 16)."""

    def attend(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, context: Any) -> Tensor:
        """Return context_BHLd of rotated queries and keys; `context` is a `Context`."""
        return super().attend(
            rotate(q_BHLd, context.cos, context.sin),
            rotate(k_BHLd, context.cos, context.sin),
            v_BHLd,
            context.mask,
        )


def rotate(x_BHLd: Tensor, cos_Ld: Tensor, sin_Ld: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) by their position's angles."""
    first, second = x_BHLd.chunk(2, dim=-1)
    turned_BHLd = torch.cat([-second, first], dim=-1)
    return x_BHLd * cos_Ld.to(x_BHLd.dtype) + turned_BHLd * sin_Ld.to(x_BHLd.dtype)


def angles(length: int, head_size: int, device: torch.device | None = None) -> Tensor:
    """Return the angle of each pair of dimensions at each position, [L, d/2]."""
    # Created on the device: a copy would make the host wait.
    pairs = torch.arange(head_size // 2, device=device).float()
    return torch.arange(length, device=device)[:, None] * THETA ** (-2 * pairs / head_size)


@torch.no_grad()
def look_at_same_tokens(qkv_weight: Tensor, *, num_heads: int) -> None:
    """Make the last head of a fused projection, [3·D, D], begin by attending to equal tokens.

    Query and key are one random map, in the half of the pairs that distances of a row hardly
    rotate, so the score is largest where both tokens are the same. From two independent maps, an
    encoder needs most of a small budget to find this head (docs/ablations.md), which comparing two
    segments depends on.
    """
    size = qkv_weight.shape[1]
    head_size = size // num_heads
    half = head_size // 2
    slow = [size - head_size + i for i in range(head_size) if i % half >= half // 2]
    std = math.sqrt(SAME_TOKEN_SCORE * math.sqrt(head_size) / (len(slow) * size))
    shared = torch.randn(len(slow), size) * std
    for rows in qkv_weight.chunk(3)[:2]:
        rows[size - head_size :] *= 0.2
        rows[slow] = shared


class Roformer(Encoder):
    """RoFormer's encoder with a head."""

    flops_as = "roformer"

    def __init__(self, config: RoformerConfig, *, head: Head = "tokens") -> None:
        super().__init__(
            config,
            embeddings=Embeddings(config, has_positions=False),
            attention=lambda: RotaryAttention(config),
            head=head,
        )
        self.reset_parameters()
        if config.attention_init == "same_token":
            attention: Any = self.layers[0].attention
            look_at_same_tokens(attention.qkv.weight, num_heads=config.num_attention_heads)

    def context(self, batch: Batch) -> Context:
        """Return the mask and the rotation for this batch's length."""
        mask_BL, ids_BL = batch.attention_mask, batch.input_ids
        angles_Ld = angles(ids_BL.shape[1], self.config.head_size, ids_BL.device).repeat(1, 2)
        mask_B11L = None if mask_BL is None else mask_BL[:, None, None, :]
        return Context(mask_B11L, angles_Ld.cos(), angles_Ld.sin())
