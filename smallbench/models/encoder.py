"""Shared parts of the architectures: post-norm layers, prediction heads, initialization.

An architecture is an `Encoder` with its own embeddings and attention; see `bert.py` first. Shapes:
B rows, L positions, E embedding size, D hidden size, V vocabulary, M chosen positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smallbench.batch import Batch
from smallbench.models.config import EncoderConfig
from smallbench.models.flops import counted_flops, transformer_flops
from smallbench.models.kernels import Dropout
from smallbench.models.kernels.dispatch import is_on_cpu

Head = Literal["tokens", "replaced", "none"]
"""Heads: the hidden tokens, which tokens were replaced, or none."""


class Norm(nn.LayerNorm):
    """Layer norm with statistics in float32, whose result may be in half precision.

    Autocast makes each norm float32, and with it the residual stream: twice the bytes.
    """

    is_half = False
    """Whether the result has autocast's type, see `half_residual`."""

    def forward(self, values: Tensor) -> Tensor:
        """Values → values, normalised over the last dimension."""
        device = values.device.type
        if not (self.is_half and torch.is_autocast_enabled(device)):
            return super().forward(values)
        dtype = torch.get_autocast_dtype(device)
        if values.dtype == torch.float32:
            return super().forward(values).to(dtype)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not is_on_cpu(values):  # CUDA's kernel takes one type and computes in float32
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(values, self.normalized_shape, weight, bias, self.eps)


class Layer(nn.Module):
    """Attention, then feed-forward, each followed by dropout, residual and norm (post-norm)."""

    def __init__(self, config: EncoderConfig, attention: nn.Module) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = attention
        self.attention_norm = Norm(size, eps=eps)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)
        self.feed_forward_norm = Norm(size, eps=eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BLD: Tensor, context: Any) -> Tensor:
        """hidden_BLD → hidden_BLD; `context` is what the attention needs besides."""
        attended_BLD = self.dropout(self.attention(hidden_BLD, context))
        hidden_BLD = self.attention_norm(hidden_BLD + attended_BLD)
        fed_BLD = self.dropout(self.down(F.gelu(self.up(hidden_BLD))))
        normed: Tensor = self.feed_forward_norm(hidden_BLD + fed_BLD)
        return normed


class TokenPredictor(nn.Module):
    """The masked-language-model head: transform D → E, then score against the token embeddings."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(Tensor(config.num_embedding_rows).zero_())

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """hidden_MD → features_ME, which the token embeddings are multiplied with."""
        features_ME: Tensor = self.norm(F.gelu(self.transform(hidden_MD)))
        return features_ME


class ReplacedTokenDetector(nn.Module):
    """ELECTRA's discriminator head (google-research/electra `_get_discriminator_output`)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """hidden_BLD → logits_BL: above 0 if a token seems to have been replaced."""
        scores_BL1: Tensor = self.score(F.gelu(self.transform(hidden_BLD)))
        return scores_BL1.squeeze(-1)


class Encoder(nn.Module, ABC):
    """Embeddings, layers and one head. Subclasses say what attention is given besides the tokens.

    With the head `tokens`, the output matrix of the predictor is the token embedding itself.
    """

    flops_as = ""
    """Row of `flops.SCORE_TERMS` with the network of this class."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        embeddings: nn.Module,
        attention: Callable[[], nn.Module],
        head: Head,
        layer: Callable[[EncoderConfig, nn.Module], nn.Module] = Layer,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        """Whether the backward pass recomputes each layer from its input (gradient checkpointing).
        """
        self.embeddings: Any = embeddings
        self.layers = nn.ModuleList(
            layer(config, attention()) for _ in range(config.num_hidden_layers)
        )
        if head == "tokens":
            self.predictor = TokenPredictor(config)
        elif head == "replaced":
            self.detector = ReplacedTokenDetector(config)

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

    @abstractmethod
    def context(self, batch: Batch) -> Any:
        """Return what every layer's attention is given besides the hidden states."""

    def forward(self, batch: Batch) -> Tensor:
        """Batch → hidden_BLD, the last layer's output."""
        context = self.context(batch)
        hidden_BLD: Tensor = self.embeddings(batch)
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:  # restores the generators, so that dropout draws the same again
                hidden_BLD = checkpoint(layer, hidden_BLD, context, use_reentrant=False)
            else:
                hidden_BLD = layer(hidden_BLD, context)
        return hidden_BLD

    def token_scorer(self, hidden_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors hidden_MD → features_ME, weight_VE and bias_V of the logits."""
        return self.predictor(hidden_MD), self.embeddings.tokens.weight, self.predictor.bias

    def predict_tokens(self, hidden_MD: Tensor) -> Tensor:
        """hidden_MD → logits_MV over `num_embedding_rows` classes, of any chosen positions."""
        return F.linear(*self.token_scorer(hidden_MD))

    def predict_replaced(self, hidden_BLD: Tensor) -> Tensor:
        """Return logits_BL of having been replaced."""
        logits_BL: Tensor = self.detector(hidden_BLD)
        return logits_BL

    @property
    def head(self) -> Head:
        """The head of this model."""
        if hasattr(self, "predictor"):
            return "tokens"
        return "replaced" if hasattr(self, "detector") else "none"

    def forward_flops(self, *, num_rows: int, length: int, num_targets: int) -> int:
        """Return the floating-point operations of one forward pass, see `models.flops`.

        By the formula of `flops_as`, if the class itself has it; otherwise counted. A subclass does
        not inherit it, since its network may differ.
        """
        if architecture := vars(type(self)).get("flops_as"):
            sizes = {"num_rows": num_rows, "length": length, "num_targets": num_targets}
            return transformer_flops(self.config, self.head, architecture=architecture, **sizes)
        per_row, per_target = counted_flops(type(self), self.config, self.head, length)
        return num_rows * per_row + num_targets * per_target


def checkpoint_activations(module: nn.Module, on: bool = True) -> None:
    """Enable activation checkpointing: less memory for one more forward pass (Chen et al. 2016,
    arXiv 1604.06174)."""
    for part in module.modules():
        if isinstance(part, Encoder):
            part.checkpoint_activations = on


def half_residual(module: nn.Module) -> None:
    """Keep the residual stream in autocast's half precision: fewer bytes to move and to keep."""
    for part in module.modules():
        if isinstance(part, Norm):
            part.is_half = True
