"""The project's own recipes; docs/ablations.md has what was tried for them."""

from __future__ import annotations

from smallbench.models.config import ModernConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, TINY_SCHEDULE, TINY_TRAIN, tiny_encoder
from smallbench.train.config import MuonConfig, PretrainConfig


@recipe(
    parameters="2.1M with 8,192 tokens",
    source="this project, for CPUs",
    budget=(
        "5,200 steps of 32 x 128 tokens (21M tokens), 2 cores; "
        "the tiny track: 5,387 steps (22M tokens)"
    ),
    expected="docs/ablations.md",
)
def modern_tiny() -> PretrainConfig:
    """bert-tiny's size with ModernBERT's layers, trained by Muon.

    Data, batch and masking are bert-tiny's, so that the two can be compared.
    """
    return PretrainConfig(
        recipe="modern-tiny",
        sequence_length=128,
        model=tiny_encoder(ModernConfig),
        objective=MaskedLMConfig(mask_fraction=TINY_MASK_FRACTION, two_segment_fraction=0.0),
        optim=MuonConfig(learning_rate=4e-3),
        schedule=TINY_SCHEDULE,
        train=TINY_TRAIN,
    )
