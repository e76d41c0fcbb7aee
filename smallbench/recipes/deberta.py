"""DeBERTa recipes."""

from __future__ import annotations

from smallbench.models.config import DebertaConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.small import small_budget, small_encoder, small_recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, tiny_encoder, tiny_facts, tiny_recipe
from smallbench.train.config import PretrainConfig


@recipe(
    parameters="15.1M parameters",
    source="Small-Bench NLP (arXiv 2109.10847), DeBERTa row",
    budget=small_budget("15 to 26"),
    expected="GLUE dev AVG 79.03, best dev score, as the paper reports it",
)
def deberta_small() -> PretrainConfig:
    """The paper's DeBERTa: disentangled attention, embedding 128, WordPiece with 30,522 tokens.

    Prepare its corpus as for bert-small. As upstream: a plain masked-language-model head in place
    of the enhanced mask decoder of DeBERTa's paper. Differences from upstream: Adam's numbers
    are those of the other systems, since the paper states none for this one; 80/10/10 corruption;
    no segments, which DeBERTa has no embedding for, so rows are not cut in two.
    """
    # 128 relative positions give the paper's number of parameters.
    model = small_encoder(DebertaConfig, max_relative_positions=128)
    objective = MaskedLMConfig(mask_fraction=0.15, two_segment_fraction=0.0)
    return small_recipe("deberta-small", model, objective)


@tiny_facts(
    parameters="2.0M parameters with a vocabulary of 8,192 tokens",
    track_steps=5_904,
    expected="mean of CoLA, MRPC, SST-2, MNLI 55.8 after 10,600 steps: docs/results.md",
)
def deberta_tiny() -> PretrainConfig:
    """bert-tiny's size with disentangled attention, from the usual initial weights.

    Learning rate, batch and masking are bert-tiny's, so that the two can be compared; no row is cut
    into two segments, for which this architecture has no embedding.
    """
    model = tiny_encoder(DebertaConfig, max_relative_positions=128)
    objective = MaskedLMConfig(mask_fraction=TINY_MASK_FRACTION, two_segment_fraction=0.0)
    return tiny_recipe("deberta-tiny", model, objective)
