"""BERT: a post-norm Transformer encoder with learned positions and a tied token predictor.

Shapes: B rows, L positions, E embedding size, D hidden size, H heads, V vocabulary, M targets.
Computes the function of transformers' `BertForMaskedLM` (E = D) and `ElectraForMaskedLM` (E < D,
which is BERT with a factorised embedding), with one fused query-key-value projection a layer and
predictions only where there are targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models.attention import attend
from smallbench.models.config import BertConfig


def sinusoids(length: int, size: int) -> Tensor:
    """Position embeddings of fixed frequencies (Vaswani et al. 2017, §3.5), [length, size].

    Neighbours are alike from the start, so attention need not learn each position by itself.
    """
    frequencies = 10_000 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :size]


class Embeddings(nn.Module):
    """Token + position + segment embeddings, normalised, then projected from E to D."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.tokens = nn.Embedding(config.num_embedding_rows, size)
        self.positions = nn.Embedding(config.max_position_embeddings, size)
        self.segments = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(size, config.hidden_size) if size != config.hidden_size else None

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD."""
        length = batch.input_ids.shape[1]
        embedded_BLE = self.tokens(batch.input_ids) + self.positions.weight[:length]
        if batch.token_type_ids is None:
            embedded_BLE = embedded_BLE + self.segments.weight[0]
        else:
            embedded_BLE = embedded_BLE + self.segments(batch.token_type_ids)
        embedded_BLE = self.dropout(self.norm(embedded_BLE))
        hidden_BLD: Tensor = embedded_BLE if self.project is None else self.project(embedded_BLE)
        return hidden_BLD


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, §3.2) with one projection for q, k and v."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """hidden_BLD → context_BLD; the mask is True where a key may be attended to."""
        B, L, D = hidden_BLD.shape
        qkv = self.qkv(hidden_BLD).view(B, L, 3, self.num_heads, D // self.num_heads)
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        context_BHLd = attend(
            q_BHLd,
            k_BHLd,
            v_BHLd,
            mask_B11L=mask_B11L,
            dropout_prob=self.dropout_prob if self.training else 0.0,
        )
        mixed_BLD: Tensor = self.out(context_BHLd.transpose(1, 2).reshape(B, L, D))
        return mixed_BLD


class Layer(nn.Module):
    """Attention, then feed-forward, each followed by dropout, residual and norm (post-norm)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(size, eps=eps)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)
        self.feed_forward_norm = nn.LayerNorm(size, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """hidden_BLD → hidden_BLD."""
        attended_BLD = self.dropout(self.attention(hidden_BLD, mask_B11L))
        hidden_BLD = self.attention_norm(hidden_BLD + attended_BLD)
        fed_BLD = self.dropout(self.down(F.gelu(self.up(hidden_BLD))))
        normed: Tensor = self.feed_forward_norm(hidden_BLD + fed_BLD)
        return normed


class TokenPredictor(nn.Module):
    """The masked-language-model head: transform D → E, then score against the token embeddings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.num_embedding_rows))

    def forward(self, hidden_MD: Tensor, token_embedding_VE: Tensor) -> Tensor:
        """hidden_MD → logits_MV."""
        transformed_ME = self.norm(F.gelu(self.transform(hidden_MD)))
        return F.linear(transformed_ME, token_embedding_VE, self.bias)


class Bert(nn.Module):
    """Encoder and token predictor; the predictor's output matrix is the token embedding itself."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.predictor = TokenPredictor(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights (σ = `initializer_range`), zero biases (google-research/bert).

        BERT truncates the normal at 2σ; transformers and we do not, which has not been seen to
        matter.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.config.position_init == "sinusoidal":
            weight = self.embeddings.positions.weight
            with torch.no_grad():
                # As strong as the tokens: a sinusoid's root mean square is 1/√2.
                weight.copy_(sinusoids(*weight.shape) * 2**0.5 * self.config.initializer_range)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD, the last layer's output."""
        mask = batch.attention_mask
        mask_B11L = None if mask is None else mask[:, None, None, :]
        hidden_BLD: Tensor = self.embeddings(batch)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, mask_B11L)
        return hidden_BLD

    def predict_tokens(self, hidden_MD: Tensor) -> Tensor:
        """hidden_MD → logits_MV over `num_embedding_rows` classes, of any chosen positions."""
        logits_MV: Tensor = self.predictor(hidden_MD, self.embeddings.tokens.weight)
        return logits_MV

    def forward_flops(self, *, num_rows: int, length: int, num_targets: int) -> int:
        """Floating-point operations of one forward pass: matrix products only, 2 a multiply-add.

        Counts what the model needs, not what is computed: no recomputation.
        """
        c = self.config
        tokens = num_rows * length
        layer = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
        attention = 2 * length * c.hidden_size  # scores and their use on the values
        project = c.embedding_size * c.hidden_size if self.embeddings.project is not None else 0
        head = c.hidden_size * c.embedding_size + c.embedding_size * c.num_embedding_rows
        per_token = c.num_hidden_layers * (layer + attention) + project
        return 2 * (tokens * per_token + num_targets * head)
