"""The project's own recipes; docs/ablations.md has what was tried for them."""

from __future__ import annotations

from dataclasses import replace

from smallbench.models.config import RoformerConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, TINY_SCHEDULE, TINY_TRAIN, tiny_encoder
from smallbench.train.config import MuonConfig, PretrainConfig


@recipe(
    parameters="1.9M with 8,192 tokens",
    source="this project, for CPUs",
    budget=(
        "5,200 steps of 32 x 128 tokens (21M tokens), 2 cores; "
        "the tiny track: 6,978 steps (29M tokens)"
    ),
    expected="docs/ablations.md",
)
def modern_tiny() -> PretrainConfig:
    """bert-tiny's size with rotary positions and related segments, trained by Muon.

    The second segment of half of the rows repeats a part of the first, and a head learns how much;
    one attention head begins by looking for equal tokens. That teaches to compare two sentences,
    which masked tokens alone do not within this budget (docs/ablations.md). Corpus, rows, width and
    depth are bert-tiny's; four heads instead of two, so that one of them can look for equal tokens.
    """
    return PretrainConfig(
        recipe="modern-tiny",
        sequence_length=128,
        model=replace(
            tiny_encoder(RoformerConfig, attention_init="same_token"), num_attention_heads=4
        ),
        objective=MaskedLMConfig(
            mask_fraction=TINY_MASK_FRACTION,
            two_segment_fraction=0.0,
            related_fraction=0.5,
            related_weight=2.0,
        ),
        optim=MuonConfig(learning_rate=2e-3, beta2=0.98),
        schedule=TINY_SCHEDULE,
        train=TINY_TRAIN,
    )
