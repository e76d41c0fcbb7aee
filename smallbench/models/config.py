"""Configurations of the architectures. No torch here: recipes and `--help` read this file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from smallbench.config import check, option, require
from smallbench.errors import ConfigError

LARGEST = {
    "vocab_size": 2**24,
    "embedding_size": 2**16,
    "hidden_size": 2**16,
    "num_hidden_layers": 1_000,  # DeepNet (Wang et al. 2022, arXiv 2203.00555)
    "num_attention_heads": 2**16,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**20,
    "vocab_size_multiple": 2**16,
}
"""Largest sizes of a model, far above what is trained: more is a slip."""

C = TypeVar("C", bound="EncoderConfig")


@dataclass(frozen=True)
class EncoderConfig:
    """Fields of every architecture; the defaults are those of ELECTRA-Small.

    With `embedding_size < hidden_size` tokens are embedded small and projected up (ALBERT, Lan et
    al. 2020, §3.1), as google-research/electra does for its small models.
    """

    architecture: str = option(
        "", help="bert, deberta, electra, roberta, roformer, or FILE.py:NAME"
    )
    """Name in the table or a plug-in's reference; `PretrainConfig` sets it from the class."""
    vocab_size: int | None = option(None, help="number of tokens; none: the tokenizer's")
    embedding_size: int = option(128, help="width of the token embeddings")
    hidden_size: int = option(256, help="width of the hidden states")
    num_hidden_layers: int = option(12, help="number of layers")
    num_attention_heads: int = option(4, help="attention heads per layer")
    intermediate_size: int = option(1024, help="width of the feed-forward layers")
    max_position_embeddings: int = option(512, help="longest row in tokens")
    type_vocab_size: int = option(2, help="number of segment embeddings")
    hidden_dropout_prob: float = option(0.1, help="dropout of the hidden states")
    attention_probs_dropout_prob: float = option(0.1, help="dropout of the attention weights")
    layer_norm_eps: float = option(
        1e-12,  # google-research/bert modeling.py
        help="epsilon of the layer norms",
    )
    initializer_range: float = option(0.02, help="standard deviation of the initial weights")
    vocab_size_multiple: int = option(
        64, help="the embedding matrix is padded to a multiple of this many rows, for speed"
    )

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            in_range = value is None or 1 <= value <= most
            require(in_range, f"model.{name}", value, f"1 to {most:,}")
        dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        check(self, "model.", **dict.fromkeys(dropouts, "[0, 1)"))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not divisible by "
                f"model.num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_size(self) -> int:
        """Hidden dimensions of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_embedding_rows(self) -> int:
        """`vocab_size` rounded up to `vocab_size_multiple`."""
        assert self.vocab_size is not None, "resolved against the tokenizer before building"
        return -(-self.vocab_size // self.vocab_size_multiple) * self.vocab_size_multiple

    def narrowed(self: C, width: float) -> C:
        """Return the same architecture at `width` times the hidden, feed-forward and head counts.

        Heads keep their size and embeddings theirs (google-research/electra, `get_generator_config`
        ). Raises `ConfigError` if no whole head is left.
        """
        hidden_size = round(self.hidden_size * width)
        num_heads = hidden_size // self.head_size
        if num_heads < 1 or hidden_size % self.head_size:
            raise ConfigError(
                f"{width} × model.hidden_size {self.hidden_size} is not a whole number of heads of "
                f"{self.head_size}; choose objective.generator_width or model.num_attention_heads "
                "so that it is"
            )
        return replace(
            self,
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            intermediate_size=round(self.intermediate_size * width),
        )


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """BERT (Devlin et al. 2019, arXiv 1810.04805), optionally with a factorised embedding."""

    architecture: str = "bert"
    attention_init: Literal["normal", "local"] = option(
        "normal",
        help="normal, or local: heads of the lower layers start by attending to neighbours",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "model.", type_vocab_size=">= 1")
        if self.attention_init == "local" and (self.head_size % 2 or self.embedding_size % 2):
            raise ConfigError(
                "model.attention_init 'local' needs embeddings and heads of an even size, not "
                f"{self.embedding_size} and {self.head_size}; use 'normal'"
            )


@dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """ELECTRA's encoder (Clark et al. 2020, arXiv 2003.10555): BERT with a factorised embedding."""

    architecture: str = "electra"


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT without segments, on byte-level BPE.

    Its embedding is as wide as its hidden layers, which transformers' classes require.
    """

    architecture: str = "roberta"
    embedding_size: int = 256
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5  # fairseq's

    def __post_init__(self) -> None:
        super().__post_init__()
        key = "model.type_vocab_size"
        require(self.type_vocab_size == 1, key, self.type_vocab_size, "1: RoBERTa has no segments")
        if self.embedding_size != self.hidden_size:
            raise ConfigError(
                f"model.embedding_size {self.embedding_size} != model.hidden_size "
                f"{self.hidden_size}; RoBERTa needs them equal; use --model.architecture=bert "
                "for a factorised embedding"
            )


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """DeBERTa (He et al. 2021, arXiv 2006.03654): disentangled attention, no absolute positions.

    Position keys and queries have their own maps, as in the paper's base model. The enhanced mask
    decoder is omitted, as in the reproduced systems.
    """

    architecture: str = "deberta"
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7  # microsoft/deberta-base
    max_relative_positions: int = option(
        512, help="largest relative distance that is distinguished"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        key = "model.type_vocab_size"
        require(self.type_vocab_size == 0, key, self.type_vocab_size, "0: DeBERTa has no segments")
        check(self, "model.", max_relative_positions=">= 1")


@dataclass(frozen=True)
class RoformerConfig(EncoderConfig):
    """RoFormer (Su et al. 2021, arXiv 2104.09864): BERT with rotary positions."""

    architecture: str = "roformer"
    attention_init: Literal["normal", "same_token"] = option(
        "normal",
        help="normal, or same_token: a head of the first layer starts by attending to equal "
        "tokens, wherever they are",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "model.", type_vocab_size=">= 1")
        if self.head_size % 2:
            raise ConfigError(
                f"model.hidden_size / model.num_attention_heads is {self.head_size}; rotary "
                "positions need an even head size"
            )
