"""Configurations of the architectures. No torch here: recipes and `--help` read this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import require
from smallbench.errors import ConfigError


@dataclass(frozen=True)
class BertConfig:
    """BERT (Devlin et al. 2019, arXiv 1810.04805), optionally with a factorised embedding.

    With `embedding_size < hidden_size` tokens are embedded small and projected up (ALBERT, Lan et
    al. 2020, §3.1), as google-research/electra does for its small models.
    """

    architecture: Literal["bert"] = "bert"
    vocab_size: int | None = None  # None: the tokenizer's
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12  # google-research/bert modeling.py
    initializer_range: float = 0.02
    position_init: Literal["normal", "sinusoidal"] = "normal"
    vocab_size_multiple: int = 64  # embedding rows are padded to it: aligned matrix products

    def __post_init__(self) -> None:
        for name in (
            "embedding_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "vocab_size_multiple",
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(self.type_vocab_size >= 2, "model.type_vocab_size", self.type_vocab_size, "2")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "[0, 1)")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not divisible by "
                f"model.num_attention_heads {self.num_attention_heads}"
            )

    @property
    def num_embedding_rows(self) -> int:
        """`vocab_size` rounded up to `vocab_size_multiple`."""
        assert self.vocab_size is not None, "resolved against the tokenizer before building"
        return -(-self.vocab_size // self.vocab_size_multiple) * self.vocab_size_multiple


ModelConfig = BertConfig
"""Any architecture's configuration; a union as soon as there are more."""
