"""BERT recipes."""

from __future__ import annotations

from smallbench.models.config import BertConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.small import small_budget, small_encoder, small_recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, tiny_encoder, tiny_facts, tiny_recipe
from smallbench.train.config import PretrainConfig


@recipe(
    parameters="13.5M parameters",
    source="Small-Bench NLP (arXiv 2109.10847), BERT row",
    budget=small_budget("11 to 20"),
    expected="GLUE dev AVG 78.37, best dev score, as the paper reports it",
)
def bert_small() -> PretrainConfig:
    """The paper's BERT: google-research/electra's small model with `electra_objective: false`.

    Prepare its corpus with WordPiece, 30,522 tokens, lower case, 128 tokens a row. Differences
    from upstream: Adam's bias correction is on (upstream's optimizer omits it); 80/10/10
    corruption as in BERT's paper (upstream masks 85 % of the chosen positions and keeps the
    rest); segments are cut anywhere in the middle half of a row, not at a sentence's end; a row
    never holds two documents, and its last row reaches back instead of being padded.
    """
    model, objective = small_encoder(BertConfig), MaskedLMConfig(mask_fraction=0.15)
    return small_recipe("bert-small", model, objective)


@tiny_facts(
    parameters="1.9M parameters with a vocabulary of 8,192 tokens",
    track_steps=6_531,
    measured="19 minutes",
    expected="mean of CoLA, MRPC, SST-2 54.4, random weights 52.0: docs/results.md",
)
def bert_tiny() -> PretrainConfig:
    """A BERT of the size that `recipes/tiny.py` explains, for two CPU cores.

    The heads of the lower two layers begin by looking at their neighbours: with BERT's own initial
    weights the whole budget passed before they had found them (docs/results.md).
    """
    model = tiny_encoder(BertConfig, attention_init="local")
    return tiny_recipe("bert-tiny", model, MaskedLMConfig(mask_fraction=TINY_MASK_FRACTION))
