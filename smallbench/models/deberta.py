"""DeBERTa: attention from content to content, to relative position, and back (He et al. 2021, §3).

    scores[i, j] = (q_i·k_j + q_i·kr[i − j] + k_j·qr[i − j]) / √(3 d)             (equations 2 to 4)

No absolute positions enter (the enhanced mask decoder is left out). The function of transformers'
`DebertaForMaskedLM` with `pos_att_type="c2p|p2c"` and `embedding_size` honoured. That class gathers
B·H·L·L indices twice a layer; here the two position terms are one product each with the 2 L rows
of positions that a row of L tokens can use, and reading them at i − j is a view.

Shapes: B rows, L positions, R = 2 L relative positions, E embedding, D hidden, H heads, d.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models.config import DebertaConfig
from smallbench.models.encoder import Encoder, Head, Norm
from smallbench.models.kernels import Dropout, attend, position_bias


class DebertaEmbeddings(nn.Module):
    """Token embeddings, projected from E to D, then normalised."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.tokens = nn.Embedding(config.num_embedding_rows, size)
        factorised = size != config.hidden_size
        self.project = nn.Linear(size, config.hidden_size, bias=False) if factorised else None
        self.norm = Norm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD."""
        embedded_BLE = self.tokens(batch.input_ids)
        hidden_BLD = embedded_BLE if self.project is None else self.project(embedded_BLE)
        normed_BLD: Tensor = self.dropout(self.norm(hidden_BLD))
        return normed_BLD

    def share_with(self, other: DebertaEmbeddings) -> None:
        """Use the token table of `other`; the norm is over D, so it cannot be shared."""
        self.tokens = other.tokens


class DisentangledSelfAttention(nn.Module):
    """The three terms; position keys and queries have maps of their own in each layer."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(size))
        self.v_bias = nn.Parameter(torch.zeros(size))
        self.position_key = nn.Linear(size, size, bias=False)
        self.position_query = nn.Linear(size, size)
        self.position_dropout = Dropout(config.hidden_dropout_prob)
        self.out = nn.Linear(size, size)

    def forward(self, hidden_BLD: Tensor, context: tuple[Tensor | None, Tensor]) -> Tensor:
        """hidden_BLD → context_BLD; the context is mask_BL and the rows of −L … L, [R + 1, D]."""
        mask_BL, positions_RD = context
        B, L, D = hidden_BLD.shape
        H, d = self.num_heads, D // self.num_heads
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(hidden_BLD, self.qkv.weight, bias).view(B, L, 3, H, d)
        # Heads first: each head's B·L queries meet the same positions in one product.
        q_HBLd, k_HBLd, v_HBLd = qkv.permute(2, 3, 0, 1, 4).unbind(0)
        positions_RD = self.position_dropout(positions_RD)
        # Key i − j = L − r for column r of c2p, query i − j = r − L for column r of p2c.
        key_HdR = self.position_key(positions_RD).flip(0)[:-1].view(-1, H, d).permute(1, 2, 0)
        query_HdR = self.position_query(positions_RD)[:-1].view(-1, H, d).permute(1, 2, 0)
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            q_HBLd = (q_HBLd * (1 / math.sqrt(3 * d))).contiguous()
            k_HBLd = k_HBLd.contiguous()
            c2p_HBLR = (q_HBLd.flatten(1, 2) @ key_HdR).view(H, B, L, -1)
            query_HdR = query_HdR * (1 / math.sqrt(3 * d))
            p2c_HBLR = (k_HBLd.flatten(1, 2) @ query_HdR).view(H, B, L, -1)
            bias_HBLL = position_bias(c2p_HBLR, p2c_HBLR)
            context_HBLd = attend(
                q_HBLd,
                k_HBLd,
                v_HBLd,
                scale=1.0,  # the queries include it already
                bias_XYLL=bias_HBLL,
                mask=None if mask_BL is None else mask_BL[None, :, None, :],
                dropout_prob=self.dropout_prob if self.training else 0.0,
            )
        mixed_BLD: Tensor = self.out(context_HBLd.permute(1, 2, 0, 3).reshape(B, L, D))
        return mixed_BLD


class Deberta(Encoder):
    """DeBERTa's encoder with a head."""

    flops_as = "deberta"

    def __init__(self, config: DebertaConfig, *, head: Head = "tokens") -> None:
        super().__init__(
            config,
            embeddings=DebertaEmbeddings(config),
            attention=lambda: DisentangledSelfAttention(config),
            head=head,
        )
        self.span = config.max_relative_positions
        self.relative_positions = nn.Embedding(2 * self.span, config.hidden_size)
        self.reset_parameters()

    def context(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return mask_BL, and the embeddings of relative positions −L … L, clamped to the span."""
        length = batch.input_ids.shape[1]
        table_SD = self.relative_positions.weight
        if length < self.span:  # nothing to clamp: a slice
            rows_RD = table_SD[self.span - length : self.span + length + 1]
        else:
            distances = torch.arange(-length, length + 1, device=table_SD.device) + self.span
            rows_RD = table_SD[distances.clamp(0, 2 * self.span - 1)]
        return batch.attention_mask, rows_RD
