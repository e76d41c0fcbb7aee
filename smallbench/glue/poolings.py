"""Pooling of a row's hidden states to one vector, and the head above it.

Shapes: B rows, L positions, D hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.errors import ConfigError


def first(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the hidden state of the first token, [CLS] in BERT; rows may be left-padded."""
    rows = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
    return hidden_BLD[rows, mask_BL.int().argmax(dim=1)]


def mean(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean over all tokens except padding."""
    weights_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
    return (hidden_BLD * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1)


def largest(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the maximum of each dimension over all tokens except padding."""
    lowest = torch.finfo(hidden_BLD.dtype).min
    return hidden_BLD.masked_fill(~mask_BL.unsqueeze(-1), lowest).amax(dim=1)


class Pooled(nn.Module):
    """An encoder, a pooling, and RoBERTa's classification head (dense, tanh, projection)."""

    def __init__(
        self,
        encoder: nn.Module,
        pooling: Callable[[Tensor, Tensor], Tensor],
        *,
        hidden_size: int,
        num_labels: int,
        dropout: float,
        initializer_range: float,
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(hidden_size, num_labels)
        for layer in (self.dense, self.scores):
            nn.init.normal_(layer.weight, std=initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → logits_BC."""
        hidden_BLD = self.encoder(batch)
        if hidden_BLD.shape[:2] != batch.input_ids.shape:
            raise ConfigError(
                "--pooling needs a hidden state for each token, but this encoder returns "
                f"{tuple(hidden_BLD.shape[:2])} for {tuple(batch.input_ids.shape)} tokens"
            )
        mask_BL = batch.attention_mask
        if mask_BL is None:
            mask_BL = torch.ones_like(batch.input_ids, dtype=torch.bool)
        pooled_BD = self.dropout(self.pooling(hidden_BLD, mask_BL))
        logits_BC: Tensor = self.scores(self.dropout(torch.tanh(self.dense(pooled_BD))))
        return logits_BC
