"""The project's own recipes; docs/ablations.md has what was tried for them."""

from __future__ import annotations

from smallbench.models.config import RoformerConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import encoder, recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, tiny_encoder, tiny_facts, tiny_recipe
from smallbench.train.config import LinearSchedule, MuonConfig, PretrainConfig, TrainConfig


@tiny_facts(
    parameters="1.9M parameters with a vocabulary of 8,192 tokens",
    track_steps=6_978,
    expected="docs/ablations.md",
)
def modern_tiny() -> PretrainConfig:
    """bert-tiny's size with rotary positions and related segments, trained by Muon.

    The second segment of half of the rows repeats a part of the first, and a head learns how much;
    one attention head begins by looking for equal tokens. That teaches to compare two sentences,
    which masked tokens alone do not within this budget (docs/ablations.md). Corpus, rows, width and
    depth are bert-tiny's; four heads instead of two, so that one of them can look for equal tokens.
    """
    model = tiny_encoder(RoformerConfig, num_attention_heads=4, attention_init="same_token")
    objective = MaskedLMConfig(
        mask_fraction=TINY_MASK_FRACTION,
        two_segment_fraction=0.0,
        related_fraction=0.5,
        related_weight=2.0,
    )
    optim = MuonConfig(learning_rate=2e-3, matrix_scale=5.0, beta2=0.98)
    return tiny_recipe("modern-tiny", model, objective, optim)


@recipe(
    parameters="25.3M parameters",
    source="modern-tiny at another size; not run",
    budget="150,000 steps of 512 x 128 tokens (9.8B tokens); 13 to 23 hours of a V100, planned, "
    "not measured",
    expected="not run, so nothing is known",
)
def modern_small() -> PretrainConfig:
    """modern-tiny's recipe at 25M parameters, for a day of one 16 GB card. It was never run.

    Prepare its corpus as bert-small's: WordPiece, 30,522 tokens, lower case, 128 tokens a row.
    Width and batch are larger than the paper's, since a day allows hundreds of tokens a weight
    (docs/ablations.md has what was measured at modern-tiny's size). The masking rate falls from 0.3
    to 0.15 (gpt-bert), and dropout is off: hardly a row is seen twice.
    """
    return PretrainConfig(
        recipe="modern-small",
        sequence_length=128,
        model=encoder(
            RoformerConfig,
            embedding_size=128,
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attention_init="same_token",
        ),
        objective=MaskedLMConfig(
            mask_fraction=0.3,
            final_mask_fraction=0.15,
            two_segment_fraction=0.0,
            related_fraction=0.25,
            related_weight=2.0,
        ),
        optim=MuonConfig(learning_rate=1e-3, matrix_scale=5.0, beta2=0.98),
        schedule=LinearSchedule(warmup_fraction=0.02),
        train=TrainConfig(max_steps=150_000, global_batch_size=512),
    )
