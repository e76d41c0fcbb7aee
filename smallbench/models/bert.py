"""BERT: learned positions, segments, and plain scaled dot-product attention.

Computes the function of transformers' `BertForMaskedLM` (E = D) and `ElectraForMaskedLM` (E < D,
which is BERT with a factorised embedding), with one fused query-key-value projection a layer and
predictions only where there are targets.

Shapes: B rows, L positions, E embedding size, D hidden size, H heads, d size of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models.attention_init import (
    POSITION_STRENGTH,
    keep_positions,
    local_positions,
    look_at_neighbours,
)
from smallbench.models.config import BertConfig, ElectraConfig, RoformerConfig
from smallbench.models.encoder import Encoder, Head, Norm
from smallbench.models.kernels import Dropout, attend


class Embeddings(nn.Module):
    """Token + position + segment embeddings, normalised, then projected from E to D."""

    def __init__(self, config: BertConfig | RoformerConfig, *, has_positions: bool = True) -> None:
        super().__init__()
        size = config.embedding_size
        self.tokens = nn.Embedding(config.num_embedding_rows, size)
        num_positions = config.max_position_embeddings
        self.positions = nn.Embedding(num_positions, size) if has_positions else None
        self.segments = nn.Embedding(config.type_vocab_size, size)
        self.norm = Norm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(size, config.hidden_size) if size != config.hidden_size else None

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD."""
        embedded_BLE = self.tokens(batch.input_ids)
        if self.positions is not None:
            embedded_BLE = embedded_BLE + self.positions.weight[: batch.input_ids.shape[1]]
        if batch.token_type_ids is None:
            embedded_BLE = embedded_BLE + self.segments.weight[0]
        else:
            embedded_BLE = embedded_BLE + self.segments(batch.token_type_ids)
        embedded_BLE = self.dropout(self.norm(embedded_BLE))
        hidden_BLD: Tensor = embedded_BLE if self.project is None else self.project(embedded_BLE)
        return hidden_BLD

    def share_with(self, other: Embeddings) -> None:
        """Use the tables and the norm of `other`; the projection stays its own.

        google-research/electra gives both networks one `embeddings` scope, which holds these.
        """
        self.tokens, self.norm = other.tokens, other.norm
        self.positions, self.segments = other.positions, other.segments


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, §3.2) with one projection for q, k and v."""

    def __init__(self, config: BertConfig | RoformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor, context: Any) -> Tensor:
        """hidden_BLD → context_BLD; `context` is what `attend` is given besides."""
        B, L, D = hidden_BLD.shape
        qkv = self.qkv(hidden_BLD).view(B, L, 3, self.num_heads, D // self.num_heads)
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        context_BHLd = self.attend(q_BHLd, k_BHLd, v_BHLd, context)
        mixed_BLD: Tensor = self.out(context_BHLd.transpose(1, 2).reshape(B, L, D))
        return mixed_BLD

    def attend(
        self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask_B11L: Tensor | None
    ) -> Tensor:
        """Return context_BHLd; the mask is True if a key may be attended to."""
        return attend(
            q_BHLd,
            k_BHLd,
            v_BHLd,
            scale=1 / math.sqrt(q_BHLd.shape[-1]),
            mask=mask_B11L,
            dropout_prob=self.dropout_prob if self.training else 0.0,
        )


class Bert(Encoder):
    """BERT's encoder with a head."""

    flops_as = "bert"
    attention_class: type[nn.Module] = SelfAttention
    """Attention class of each layer, built with the configuration."""

    def __init__(self, config: BertConfig, *, head: Head = "tokens") -> None:
        super().__init__(
            config,
            embeddings=Embeddings(config),
            attention=lambda: self.attention_class(config),
            head=head,
        )
        self.reset_parameters()
        if config.attention_init == "local":
            self._look_at_neighbours(config)

    def context(self, batch: Batch) -> Tensor | None:
        """Return mask_B11L, True if a key may be attended to; None if all may."""
        mask_BL = batch.attention_mask
        return None if mask_BL is None else mask_BL[:, None, None, :]

    def _look_at_neighbours(self, config: BertConfig) -> None:
        positions = self.embeddings.positions.weight
        strength = POSITION_STRENGTH * config.initializer_range
        with torch.no_grad():
            positions.copy_(strength * local_positions(*positions.shape))
        if self.embeddings.project is not None:
            keep_positions(self.embeddings.project.weight)
        layers: Any = self.layers
        for index, layer in enumerate(layers[: (len(layers) + 1) // 2]):
            look_at_neighbours(
                layer.attention.qkv.weight,
                embedding_size=config.embedding_size,
                layer=index,
                num_heads=config.num_attention_heads,
            )


class Electra(Bert):
    """ELECTRA (Clark et al. 2020): BERT with a factorised embedding and another objective.

    The function of transformers' `ElectraForPreTraining` with the head `replaced` (the
    discriminator), of `ElectraForMaskedLM` with the head `tokens` (the generator).
    """

    flops_as = "bert"  # the same network

    def __init__(self, config: ElectraConfig, *, head: Head = "replaced") -> None:
        super().__init__(config, head=head)


class Roberta(Bert):
    """RoBERTa (Liu et al. 2019): BERT without segments, with another vocabulary and training.

    The function of transformers' `RobertaForMaskedLM`, whose position table begins with
    `pad_token_id + 1` rows that no token uses; ours has no such rows, the export adds them.
    """

    flops_as = "bert"  # the same network
