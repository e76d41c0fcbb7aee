"""Configurations of the pretraining objectives. No torch here: recipes read this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        if not 0 < self.mask_fraction < 1:
            raise ConfigError(f"objective.mask_fraction {self.mask_fraction} is not in (0, 1)")
        if not 0 <= self.mask_token_fraction + self.random_token_fraction <= 1:
            raise ConfigError(
                f"objective.mask_token_fraction {self.mask_token_fraction} and "
                f"objective.random_token_fraction {self.random_token_fraction} add up to over 1"
            )
        if not 0 <= self.two_segment_fraction <= 1:
            raise ConfigError(
                f"objective.two_segment_fraction {self.two_segment_fraction} is not in [0, 1]"
            )


ObjectiveConfig = MaskedLMConfig
"""Any pretraining objective's configuration; a union as soon as there are more."""
