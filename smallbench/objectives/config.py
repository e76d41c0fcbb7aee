"""Configurations of the pretraining objectives. No torch here: recipes read this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import require
from smallbench.errors import ConfigError


@dataclass(frozen=True)
class MaskedLMConfig:
    """Masked-language modelling with dynamic masking and no next-sentence prediction."""

    objective: Literal["masked_lm"] = "masked_lm"
    mask_fraction: float = 0.15  # Devlin et al. 2019, §3.1
    mask_token_fraction: float = 0.8  # of the chosen positions: become [MASK]
    random_token_fraction: float = 0.1  # become a random token; the rest stays
    # google-research/electra build_pretraining_dataset.py: half of the examples have two segments.
    two_segment_fraction: float = 0.5

    def __post_init__(self) -> None:
        key = "objective.mask_fraction"
        require(0 < self.mask_fraction < 1, key, self.mask_fraction, "over 0 and under 1")
        for name in ("mask_token_fraction", "random_token_fraction", "two_segment_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"objective.{name}", value, "0 to 1")
        if self.mask_token_fraction + self.random_token_fraction > 1:
            raise ConfigError(
                f"objective.mask_token_fraction {self.mask_token_fraction} and "
                f"objective.random_token_fraction {self.random_token_fraction} add up to over 1"
            )


ObjectiveConfig = MaskedLMConfig
"""Any pretraining objective's configuration; a union as soon as there are more."""
