"""ELECTRA recipes: replaced-token detection with BERT's and with DeBERTa's networks."""

from __future__ import annotations

from dataclasses import replace

from smallbench.models.config import DebertaConfig, ElectraConfig
from smallbench.objectives.config import ReplacedTokenConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.small import small_budget, small_encoder, small_recipe
from smallbench.recipes.tiny import TINY_MASK_FRACTION, tiny_encoder, tiny_facts, tiny_recipe
from smallbench.train.config import PretrainConfig


@recipe(
    parameters="13.5M parameters",
    source="Small-Bench NLP (arXiv 2109.10847), ELECTRA row; google-research/electra, small",
    budget=small_budget("13 to 24"),
    expected="GLUE dev AVG 80.36, the median over many seeds that google-research/electra reports",
)
def electra_small() -> PretrainConfig:
    """ELECTRA-Small on OpenWebText, as google-research/electra trains it.

    Prepare its corpus as for bert-small. The parameters are the discriminator's. Differences from
    upstream: Adam's bias correction is on and warm-up is not multiplied into the decay; segments
    are cut anywhere in the middle half of a row, not at a sentence's end; a row never holds two
    documents.
    """
    objective = ReplacedTokenConfig(  # table 6
        mask_fraction=0.15, generator_width=0.25, discriminator_weight=50.0
    )
    return small_recipe("electra-small", small_encoder(ElectraConfig), objective)


@recipe(
    parameters="15.1M parameters",
    source="Small-Bench NLP (arXiv 2109.10847), ELECTRA-DeBERTa row",
    budget=small_budget("18 to 32"),
    expected="GLUE dev AVG 81.53, best dev score, as the paper reports it",
)
def electra_deberta_small() -> PretrainConfig:
    """The paper's best system: a DeBERTa discriminator with a DeBERTa generator.

    Prepare its corpus as for bert-small. The parameters are the discriminator's. Differences from
    upstream: its generator is as wide as its discriminator, by mistake (the full width costs about
    four points of MNLI, google-research/electra issue 73); here it is a quarter, as the paper says.
    Upstream saves no optimizer and cannot resume.
    """
    model = small_encoder(
        DebertaConfig,
        max_relative_positions=128,  # gives the paper's number of parameters
        hidden_dropout_prob=0.1,  # upstream
        attention_probs_dropout_prob=0.1,  # upstream
    )
    objective = ReplacedTokenConfig(
        mask_fraction=0.15,
        mask_token_fraction=0.85,  # upstream: the rest stays
        generator_width=0.25,
        discriminator_weight=50.0,
        two_segment_fraction=0.0,
    )
    # Upstream's learning rate, warm-up and clipping are the shared ones.
    return small_recipe("electra-deberta-small", model, objective, weight_decay=0.1)


TINY_OBJECTIVE = ReplacedTokenConfig(
    mask_fraction=TINY_MASK_FRACTION,
    generator_width=0.5,  # a quarter would leave half a head
)


@tiny_facts(
    parameters="1.9M parameters with a vocabulary of 8,192 tokens",
    track_steps=5_308,
    expected="mean of CoLA, MRPC, SST-2, MNLI 46.4 after 10,900 steps: docs/results.md",
)
def electra_tiny() -> PretrainConfig:
    """bert-tiny's network as a discriminator, with a generator of half its width.

    The parameters are the discriminator's. Both networks begin by looking at neighbours.
    """
    model = tiny_encoder(ElectraConfig, attention_init="local")
    return tiny_recipe("electra-tiny", model, TINY_OBJECTIVE)


@tiny_facts(
    parameters="2.0M parameters with a vocabulary of 8,192 tokens",
    track_steps=4_699,
    expected="mean of CoLA, MRPC, SST-2, MNLI 53.5 after 8,300 steps: docs/results.md",
)
def electra_deberta_tiny() -> PretrainConfig:
    """deberta-tiny's network as a discriminator, with a generator of half its width.

    The parameters are the discriminator's; everything else is electra-tiny's.
    """
    model = tiny_encoder(DebertaConfig, max_relative_positions=128)
    objective = replace(TINY_OBJECTIVE, two_segment_fraction=0.0)
    return tiny_recipe("electra-deberta-tiny", model, objective)
