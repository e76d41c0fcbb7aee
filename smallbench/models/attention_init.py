"""Initial weights with which the heads of the lower layers look at neighbours of their tokens.

From random weights, attention to every position is the same mean of the row, which says next to
nothing of the token in the middle; a narrow encoder on a small budget can spend all of it before
its heads find the neighbours (docs/results.md: 6,000 steps were not enough, with these weights 200
are). ConViT (d'Ascoli et al. 2021, §3) starts the heads of a vision Transformer as a convolution
for the same reason; for text the pattern needs one dimension only. The upper half of the layers
begins as usual, as a mean over the row, which is what a classifier needs of the first token. All
weights stay trainable and the network is the same.

Shapes: L positions, E embedding, D hidden, d size of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OFFSETS = (-1, 1, -2, 2)
"""Offsets that heads attend to, in turn through all heads of all layers."""

BASE = 16
"""Frequencies fall from π to π/16: high ones separate neighbours, low ones keep them similar."""

POSITION_STRENGTH = 2.0
"""Root mean square of a position's embedding over a token's."""

GAIN = 1.2
"""Of the query and key maps. Chosen so that heads of 64 dimensions put about 0.8 of their weight on
their neighbour in the first layer and still have a gradient elsewhere."""

NOISE = 0.02
"""Standard deviation of the random part of the query and key maps (BERT's)."""


def frequencies(size: int) -> Tensor:
    """Return the radians per position of each pair of dimensions, [size / 2]."""
    return math.pi * BASE ** (-torch.arange(0, size, 2) / size)


def local_positions(length: int, size: int) -> Tensor:
    """Return [L, E] sinusoids (Vaswani et al. 2017, §3.5), scaled to a mean square of 1."""
    angles = torch.arange(length)[:, None] * frequencies(size)
    return math.sqrt(2) * torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def rotation(angles: Tensor) -> Tensor:
    """Return the matrix that turns each pair (sin a, cos a) of dimensions by its angle."""
    sin, cos = angles.sin(), angles.cos()
    blocks = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
    turned: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return turned


@torch.no_grad()
def keep_positions(project_weight: Tensor) -> None:
    """Make a projection E → D keep evenly chosen pairs of dimensions, in place."""
    hidden_size, embedding_size = project_weight.shape
    dimensions = torch.arange(embedding_size).view(-1, 2)[kept_pairs(embedding_size, hidden_size)]
    columns = dimensions.flatten()
    project_weight[torch.arange(len(columns)), columns] += 1.0


def kept_pairs(embedding_size: int, hidden_size: int) -> Tensor:
    """Return the pairs of dimensions that fit into the hidden size, evenly from all."""
    count = min(embedding_size, hidden_size) // 2
    return torch.arange(count) * (embedding_size // 2) // count


@torch.no_grad()
def look_at_neighbours(
    qkv_weight: Tensor, *, embedding_size: int, layer: int, num_heads: int
) -> None:
    """Fill the query and key rows of a fused projection, [3·D, D], in place.

    A head reads its own share of the frequencies: its query is the position itself, its key the
    position shifted back, so their product is largest where the key lies `offset` after the query.
    """
    size = qkv_weight.shape[1]
    query, key, _ = qkv_weight.chunk(3)
    torch.nn.init.normal_(query, std=NOISE)
    torch.nn.init.normal_(key, std=NOISE)
    kept = frequencies(embedding_size)[kept_pairs(embedding_size, size)]
    dimensions = torch.arange(2 * len(kept)).view(-1, 2)
    for head in range(num_heads):
        offset = OFFSETS[(layer * num_heads + head) % len(OFFSETS)]
        own = dimensions[head::num_heads].flatten()
        first = head * size // num_heads
        rows = slice(first, first + len(own))
        # With fewer dimensions for a position, their scale is larger.
        gain = GAIN * math.sqrt(size / num_heads / len(own))
        position = gain * torch.eye(size)[own]
        query[rows] += position
        key[rows] += rotation(-offset * kept[head::num_heads]) @ position
