"""BERT with a gate on each layer's attention: what passes depends on the token itself."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from smallbench.config import option, require
from smallbench.models.bert import Bert, SelfAttention
from smallbench.models.config import BertConfig
from smallbench.recipes.bert import bert_tiny
from smallbench.train.config import PretrainConfig


@dataclass(frozen=True)
class GatedConfig(BertConfig):
    """BERT's keys and one more."""

    gate: float = option(0.9, help="share of the attention's output that passes at the start")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gate < 1, "model.gate", self.gate, "over 0 and under 1")


class GatedAttention(SelfAttention):
    """Self-attention times a sigmoid of the hidden state."""

    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        return torch.sigmoid(self.gate(hidden_BLD)) * super().forward(hidden_BLD, mask_B11L)


class GatedBert(Bert):
    """BERT's encoder with gated attention."""

    config: GatedConfig
    attention_class = GatedAttention

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in self.layers:
            gate = self.config.gate
            nn.init.constant_(layer.attention.gate.bias, math.log(gate / (1 - gate)))


def gated_bert_tiny() -> PretrainConfig:
    """bert-tiny with gates."""
    recipe = bert_tiny()
    sizes = {f.name: getattr(recipe.model, f.name) for f in fields(recipe.model)}
    return replace(recipe, model=GatedConfig(**sizes))
