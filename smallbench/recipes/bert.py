"""BERT recipes."""

from __future__ import annotations

from smallbench.models.config import BertConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.tiny import (
    TINY_MASK_FRACTION,
    TINY_OPTIM,
    TINY_SCHEDULE,
    TINY_TRAIN,
    tiny_encoder,
)
from smallbench.train.config import AdamWConfig, PretrainConfig, ScheduleConfig, TrainConfig


@recipe(
    parameters="13.5M",
    source="Small-Bench NLP (arXiv 2109.10847), BERT row",
    budget="1M steps of 128 x 128 tokens (16.4B tokens); days on one 16 GB GPU, not measured here",
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
    return PretrainConfig(
        recipe="bert-small",
        sequence_length=128,  # paper §4
        model=BertConfig(
            vocab_size=30_522,  # BERT-uncased WordPiece
            embedding_size=128,  # ELECTRA, Clark et al. 2020, table 6 (small)
            hidden_size=256,
            num_hidden_layers=12,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=512,
        ),
        objective=MaskedLMConfig(mask_fraction=0.15),
        optim=AdamWConfig(
            learning_rate=5e-4,  # ELECTRA, table 6 (small)
            epsilon=1e-6,
            weight_decay=0.01,
            clip_norm=1.0,  # google-research/electra optimization.py
        ),
        schedule=ScheduleConfig(warmup_fraction=0.01),  # 10,000 of 1M steps
        train=TrainConfig(max_steps=1_000_000, global_batch_size=128),
    )


@recipe(
    parameters="1.9M with 8,192 tokens",
    source="this project, for CPUs",
    budget=(
        "5,200 steps of 32 x 128 tokens (21M tokens); measured: 19 minutes, 2 cores; "
        "the tiny track: 6,531 steps (27M tokens)"
    ),
    expected="mean of CoLA, MRPC, SST-2 54.4, random weights 52.0: docs/results.md",
)
def bert_tiny() -> PretrainConfig:
    """A BERT of the size that `recipes/tiny.py` explains, for two CPU cores.

    The heads of the lower two layers begin by looking at their neighbours: with BERT's own initial
    weights the whole budget passed before they had found them (docs/results.md).
    """
    return PretrainConfig(
        recipe="bert-tiny",
        sequence_length=128,
        model=tiny_encoder(BertConfig, attention_init="local"),
        objective=MaskedLMConfig(mask_fraction=TINY_MASK_FRACTION),
        optim=TINY_OPTIM,
        schedule=TINY_SCHEDULE,
        train=TINY_TRAIN,
    )
