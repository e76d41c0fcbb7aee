"""A ModernBERT-shaped encoder (Warner et al. 2024, arXiv 2412.13663): pre-norm, rotary positions,
gated feed-forward, no biases, and layers that see a window between layers that see the whole row.

Computes the function of transformers' `ModernBertForMaskedLM`. A window layer comes first, because
what a small model learns first is which tokens stand next to each other.

Shapes: B rows, L positions, D hidden size, H heads, d size of a head.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models.config import ModernConfig
from smallbench.models.convert import FINETUNING_DROPOUT, Rule, Target, token_rows
from smallbench.models.encoder import Encoder, Head, Norm
from smallbench.models.flops import transformer_flops
from smallbench.models.kernels import Dropout, attend


@dataclass(frozen=True)
class Context:
    """Masks (None: all keys) and rotation [L, d] for the attention of every layer."""

    whole: Tensor | None
    window: Tensor
    cos: Tensor
    sin: Tensor


class ModernEmbeddings(nn.Module):
    """Token embeddings, normalised; positions enter by rotation in each layer."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.num_embedding_rows, config.hidden_size)
        self.norm = Norm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD."""
        hidden_BLD: Tensor = self.dropout(self.norm(self.tokens(batch.input_ids)))
        return hidden_BLD


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, config: ModernConfig, index: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.index, self.is_window = index, not config.sees_whole_row(index)
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)

    def forward(self, hidden_BLD: Tensor, context: Context) -> Tensor:
        """hidden_BLD → context_BLD."""
        B, L, D = hidden_BLD.shape
        qkv = self.qkv(hidden_BLD).view(B, L, 3, self.num_heads, D // self.num_heads)
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        context_BHLd = attend(
            rotate(q_BHLd, context.cos, context.sin),
            rotate(k_BHLd, context.cos, context.sin),
            v_BHLd,
            scale=1 / math.sqrt(D // self.num_heads),
            mask=context.window if self.is_window else context.whole,
            dropout_prob=self.dropout_prob if self.training else 0.0,
        )
        mixed_BLD: Tensor = self.out(context_BHLd.transpose(1, 2).reshape(B, L, D))
        return mixed_BLD


def rotate(x_BHLd: Tensor, cos_Ld: Tensor, sin_Ld: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) by their position's angles."""
    first, second = x_BHLd.chunk(2, dim=-1)
    turned_BHLd = torch.cat([-second, first], dim=-1)
    return x_BHLd * cos_Ld.to(x_BHLd.dtype) + turned_BHLd * sin_Ld.to(x_BHLd.dtype)


class PreNormLayer(nn.Module):
    """Norm, attention, residual; then norm, gated feed-forward, residual (pre-norm)."""

    def __init__(self, config: ModernConfig, attention: RotaryAttention) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        # The first layer's input is the embeddings' norm already.
        self.attention_norm = Norm(size, eps=eps, bias=False) if attention.index else None
        self.attention = attention
        self.feed_forward_norm = Norm(size, eps=eps, bias=False)
        self.up = nn.Linear(size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BLD: Tensor, context: Context) -> Tensor:
        """hidden_BLD → hidden_BLD."""
        normed_BLD = hidden_BLD if self.attention_norm is None else self.attention_norm(hidden_BLD)
        hidden_BLD = hidden_BLD + self.dropout(self.attention(normed_BLD, context))
        value_BLI, gate_BLI = self.up(self.feed_forward_norm(hidden_BLD)).chunk(2, dim=-1)
        fed_BLD: Tensor = self.down(self.dropout(F.gelu(value_BLI) * gate_BLI))
        return hidden_BLD + fed_BLD


class ModernTokenPredictor(nn.Module):
    """The masked-language-model head; only the output over tokens has a bias."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.num_embedding_rows))

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """hidden_MD → features_MD, which the token embeddings are multiplied with."""
        features_MD: Tensor = self.norm(F.gelu(self.transform(hidden_MD)))
        return features_MD


class Modern(Encoder):
    """The encoder with a head."""

    def __init__(self, config: ModernConfig, *, head: Head = "tokens") -> None:
        indices = itertools.count()
        layer: Any = PreNormLayer
        super().__init__(
            config,
            embeddings=ModernEmbeddings(config),
            attention=lambda: RotaryAttention(config, next(indices)),
            head=head,
            layer=layer,
        )
        if head == "tokens":
            self.predictor: Any = ModernTokenPredictor(config)
        self.final_norm = Norm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.rope_theta = config.rope_theta
        self.half_window = config.local_attention // 2
        self.reset_parameters()
        with torch.no_grad():  # output projections to the residual stream start small
            for part in self.layers.modules():
                if isinstance(part, PreNormLayer):
                    for linear in (part.attention.out, part.down):
                        linear.weight.div_(math.sqrt(2 * config.num_hidden_layers))

    def context(self, batch: Batch) -> Context:
        """Return the masks and the rotation for this batch's length."""
        length, device = batch.input_ids.shape[1], batch.input_ids.device
        at_L = torch.arange(length, device=device)
        near_LL = (at_L[:, None] - at_L[None, :]).abs() <= self.half_window
        window, whole = near_LL[None, None], None
        if batch.attention_mask is not None:
            whole = batch.attention_mask[:, None, None, :]
            # A padded position attends to itself, since a softmax over nothing is NaN.
            window = (window & whole) | torch.eye(length, dtype=torch.bool, device=device)
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        # Created on the device: a copy would make the host wait.
        places_d = torch.arange(half, device=device).float()
        rates_d = self.rope_theta ** (-places_d / half)
        angles_Ld = at_L[:, None].float() * rates_d.repeat(2)[None, :]
        return Context(whole, window, angles_Ld.cos(), angles_Ld.sin())

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD, the last layer's output, normalised."""
        normed_BLD: Tensor = self.final_norm(super().forward(batch))
        return normed_BLD

    def flops_formula(self, **sizes: int) -> int:
        """Return the operations of a forward pass."""
        return transformer_flops(self.config, self.head, architecture="modern", **sizes)

    @classmethod
    def transformers_target(
        cls, config: ModernConfig, *, head: str, pad_token_id: int
    ) -> Target | None:
        """Return the export to `ModernBertForMaskedLM`; transformers has no other head for it."""
        return target(config, pad_token_id) if head == "tokens" else None


def target(config: ModernConfig, pad_token_id: int) -> Target:
    """Return the names and the configuration of transformers' ModernBERT."""
    base = "model"
    names = {
        "embeddings.norm.weight": f"{base}.embeddings.norm.weight",
        "final_norm.weight": f"{base}.final_norm.weight",
        "predictor.transform.weight": "head.dense.weight",
        "predictor.norm.weight": "head.norm.weight",
    }
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}", f"{base}.layers.{i}"
        names |= {
            f"{ours}.attention.qkv.weight": f"{theirs}.attn.Wqkv.weight",
            f"{ours}.attention.out.weight": f"{theirs}.attn.Wo.weight",
            f"{ours}.feed_forward_norm.weight": f"{theirs}.mlp_norm.weight",
            f"{ours}.up.weight": f"{theirs}.mlp.Wi.weight",
            f"{ours}.down.weight": f"{theirs}.mlp.Wo.weight",
        }
        if i:
            names[f"{ours}.attention_norm.weight"] = f"{theirs}.attn_norm.weight"
    rules = {ours: Rule((theirs,)) for ours, theirs in names.items()}
    rules["embeddings.tokens.weight"] = token_rows(
        config, f"{base}.embeddings.tok_embeddings.weight"
    )
    rules["predictor.bias"] = token_rows(config, "decoder.bias")
    rotation = {"rope_type": "default", "rope_theta": config.rope_theta}
    whole, window = "full_attention", "sliding_attention"
    return Target(
        "modernbert",
        "ModernBertForMaskedLM",
        {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "hidden_activation": "gelu",
            "initializer_range": config.initializer_range,
            "norm_eps": config.layer_norm_eps,
            "local_attention": config.local_attention,
            "layer_types": [
                whole if config.sees_whole_row(i) else window
                for i in range(config.num_hidden_layers)
            ],
            "rope_parameters": {whole: dict(rotation), window: dict(rotation)},
            "attention_dropout": FINETUNING_DROPOUT,
            "embedding_dropout": FINETUNING_DROPOUT,
            "mlp_dropout": FINETUNING_DROPOUT,
            "classifier_pooling": "mean",
            "pad_token_id": pad_token_id,
            "tie_word_embeddings": True,
        },
        rules,
    )
