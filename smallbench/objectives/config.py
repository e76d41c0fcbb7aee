"""Configurations of the pretraining objectives. No torch here: recipes read this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import check, option
from smallbench.errors import ConfigError


@dataclass(frozen=True)
class ObjectiveConfig:
    """Fields of every pretraining objective's configuration."""

    objective: str = option("", help="masked_lm, replaced_token, or FILE.py:NAME")
    """Name in the table or a plug-in's reference; `PretrainConfig` sets it from the class."""
    two_segment_fraction = 0.0  # not a key, unless a subclass makes it one
    related_fraction = 0.0  # likewise


@dataclass(frozen=True)
class CorruptionConfig(ObjectiveConfig):
    """Dynamic masking, as BERT does it; no next-sentence prediction.

    Recipes set other values: the tiny ones (`recipes.tiny`) and modern-small mask 0.3 of tokens.
    """

    mask_fraction: float = option(
        0.15,  # Devlin et al. 2019, §3.1
        help="masking rate: fraction of tokens that are targets (Hugging Face: mlm_probability)",
    )
    final_mask_fraction: float | None = option(
        None,
        help="masking rate of the last step, changed linearly (gpt-bert: 0.3 to 0.15); none: "
        "constant",
    )
    mask_token_fraction: float = option(0.8, help="fraction of the targets that become [MASK]")
    random_token_fraction: float = option(
        0.1, help="fraction of the targets that become a random token; the rest stays"
    )
    two_segment_fraction: float = option(
        0.5,  # google-research/electra build_pretraining_dataset.py
        help="fraction of rows that are split into two segments",
    )

    def __post_init__(self) -> None:
        check(self, "objective.", mask_fraction="(0, 1)", final_mask_fraction="(0, 1)")
        shares = ("mask_token_fraction", "random_token_fraction", "two_segment_fraction")
        check(self, "objective.", **dict.fromkeys(shares, "[0, 1]"))
        if self.mask_token_fraction + self.random_token_fraction > 1:
            raise ConfigError(
                f"objective.mask_token_fraction {self.mask_token_fraction} and "
                f"objective.random_token_fraction {self.random_token_fraction} add up to over 1"
            )

    def mask_fraction_at(self, fraction: float) -> float:
        """Return the masking rate (mlm_probability) at this fraction of the run."""
        first, last = self.mask_fraction, self.final_mask_fraction
        return first if last is None else first + (last - first) * fraction


@dataclass(frozen=True)
class MaskedLMConfig(CorruptionConfig):
    """Masked-language modelling: predict the hidden tokens."""

    objective: str = "masked_lm"
    related_fraction: float = option(
        0.0,
        help="fraction of rows whose second segment repeats a part of the first; a head on the "
        "mean over tokens, which is not exported, predicts how much",
    )
    related_mask_fraction: float = option(
        0.15, help="masking rate of those rows; at 0.3, masks would hide half of what is repeated"
    )
    related_weight: float = option(1.0, help="weight of the loss of that prediction")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "objective.", related_fraction="[0, 1]", related_mask_fraction="(0, 1)")
        check(self, "objective.", related_weight="> 0")
        if self.related_fraction and self.two_segment_fraction:
            raise ConfigError(
                f"objective.related_fraction {self.related_fraction} and "
                f"objective.two_segment_fraction {self.two_segment_fraction}: one of the two must "
                "be 0"
            )


@dataclass(frozen=True)
class ReplacedTokenConfig(CorruptionConfig):
    """Replaced-token detection (Clark et al. 2020, arXiv 2003.10555)."""

    objective: str = "replaced_token"
    # google-research/electra pretrain_helpers.py `mask`: 85 % become [MASK], the rest stays.
    mask_token_fraction: float = 0.85
    random_token_fraction: float = 0.0
    generator_width: float = option(
        0.25,  # §3.2: a quarter to a half works best
        help="hidden size of the generator as a fraction of the discriminator's",
    )
    generator_weight: float = option(1.0, help="weight of the generator's loss")
    discriminator_weight: float = option(
        50.0,  # λ, §3.1 and appendix A
        help="weight of the discriminator's loss",
    )
    embedding_sharing: Literal["shared", "gradient_disentangled", "none"] = option(
        "shared",  # §3.2
        help="gradient_disentangled: the discriminator adds to the generator's (DeBERTaV3)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "objective.", generator_width="(0, 1]")
        check(self, "objective.", generator_weight="> 0", discriminator_weight="> 0")
