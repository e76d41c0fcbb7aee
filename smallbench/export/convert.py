"""Our weights under transformers' names, and back.

transformers' `Bert*` classes know no factorised embedding, and its `Electra*` classes are exactly
BERT with one; so a BERT with `embedding_size < hidden_size` travels as Electra, and one with
`embedding_size == hidden_size` as Bert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smallbench.models.config import BertConfig


@dataclass(frozen=True)
class Target:
    """How an architecture travels: transformers' names and configuration."""

    model_type: str
    class_prefix: str
    """`Electra` of `ElectraForMaskedLM`."""
    config: Mapping[str, Any]
    names: Mapping[str, str]
    """Our parameter's name → transformers'."""

    def pack(self, state: Mapping[str, Tensor], *, vocab_size: int) -> dict[str, Tensor]:
        """Our state dict → transformers', with q, k and v apart and padding rows cut off."""
        packed: dict[str, Tensor] = {}
        for ours, theirs in self.names.items():
            tensor = state[ours]
            if "{qkv}" in theirs:
                for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    packed[theirs.format(qkv=name)] = part.clone()
            elif ours in PADDED:
                packed[theirs] = tensor[:vocab_size].clone()
            else:
                packed[theirs] = tensor.clone()
        return packed

    def unpack(self, theirs: Mapping[str, Tensor], *, num_rows: int) -> dict[str, Tensor]:
        """transformers' state dict → ours, the padding rows filled with zeros."""
        state: dict[str, Tensor] = {}
        for ours, name in self.names.items():
            if "{qkv}" in name:
                parts = [theirs[name.format(qkv=part)] for part in ("query", "key", "value")]
                state[ours] = torch.cat(parts)
            else:
                state[ours] = theirs[name].clone()
            if ours in PADDED:
                missing = num_rows - state[ours].shape[0]
                padding = state[ours].new_zeros(missing, *state[ours].shape[1:])
                state[ours] = torch.cat([state[ours], padding])
        return state


PADDED = frozenset({"embeddings.tokens.weight", "predictor.bias"})
"""Parameters with a row for each token, padded to `vocab_size_multiple`."""

FINETUNING_DROPOUT = 0.1
"""What an export's configuration says, whatever pretraining used: whoever loads it will fine-tune
it, and fine-tuning on small tasks wants dropout (Geiping & Goldstein 2022, §4.2)."""


def target_of(config: BertConfig, *, pad_token_id: int = 0) -> Target:
    """How `config`'s architecture travels."""
    factorised = config.embedding_size != config.hidden_size
    base = "electra" if factorised else "bert"
    if factorised:
        head = {
            "predictor.transform": "generator_predictions.dense",
            "predictor.norm": "generator_predictions.LayerNorm",
        }
        bias = "generator_lm_head.bias"
    else:
        head = {
            "predictor.transform": "cls.predictions.transform.dense",
            "predictor.norm": "cls.predictions.transform.LayerNorm",
        }
        bias = "cls.predictions.bias"
    modules = {"embeddings.norm": f"{base}.embeddings.LayerNorm"} | head
    if factorised:
        modules["embeddings.project"] = f"{base}.embeddings_project"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}", f"{base}.encoder.layer.{i}"
        modules |= {
            f"{ours}.attention.qkv": f"{theirs}.attention.self.{{qkv}}",
            f"{ours}.attention.out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.up": f"{theirs}.intermediate.dense",
            f"{ours}.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    names = {
        f"embeddings.{ours}.weight": f"{base}.embeddings.{theirs}.weight"
        for ours, theirs in (
            ("tokens", "word_embeddings"),
            ("positions", "position_embeddings"),
            ("segments", "token_type_embeddings"),
        )
    }
    for ours, theirs in modules.items():
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    names["predictor.bias"] = bias
    shared = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": FINETUNING_DROPOUT,
        "attention_probs_dropout_prob": FINETUNING_DROPOUT,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
    }
    if factorised:
        shared["embedding_size"] = config.embedding_size
    return Target(model_type=base, class_prefix=base.capitalize(), config=shared, names=names)
