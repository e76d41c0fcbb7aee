"""DeBERTa recipes."""

from __future__ import annotations

from smallbench.models.config import DebertaConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import recipe
from smallbench.recipes.bert import TINY_OPTIM, TINY_SCHEDULE, TINY_TRAIN
from smallbench.train.config import OptimConfig, PretrainConfig, ScheduleConfig, TrainConfig


@recipe(
    parameters="15.1M",
    source="Small-Bench NLP (arXiv 2109.10847), DeBERTa row",
    budget="1M steps of 128 x 128 tokens (16.4B tokens); days on one 16 GB GPU, not measured here",
    expected="GLUE dev AVG 79.03, best dev score, as the paper reports it",
)
def deberta_small() -> PretrainConfig:
    """The paper's DeBERTa: disentangled attention, embedding 128, WordPiece with 30,522 tokens.

    Prepare its corpus as for bert-small. As upstream: a plain masked-language-model head in place
    of the enhanced mask decoder of DeBERTa's paper. Differences from upstream: Adam's numbers
    are those of the other systems, since the paper states none for this one; 80/10/10 corruption;
    no segments, which DeBERTa has no embedding for, so rows are not cut in two.
    """
    return PretrainConfig(
        recipe="deberta-small",
        sequence_length=128,  # paper §4
        model=DebertaConfig(
            vocab_size=30_522,  # BERT-uncased WordPiece
            embedding_size=128,
            hidden_size=256,
            num_hidden_layers=12,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=512,
            max_relative_positions=128,  # gives the paper's number of parameters
        ),
        objective=MaskedLMConfig(mask_fraction=0.15, two_segment_fraction=0.0),
        optim=OptimConfig(learning_rate=5e-4, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_fraction=0.01),  # 10,000 of 1M steps
        train=TrainConfig(max_steps=1_000_000, global_batch_size=128),
    )


@recipe(
    parameters="2.0M with 8,192 tokens",
    source="this project, for CPUs",
    budget="about 20 minutes, 2 cores",
    expected="not measured yet",
)
def deberta_tiny() -> PretrainConfig:
    """bert-tiny's size with disentangled attention; its positions need no help to be found.

    Learning rate, batch and masking are bert-tiny's, so that the two can be compared.
    """
    return PretrainConfig(
        recipe="deberta-tiny",
        sequence_length=128,
        model=tiny_deberta(),
        objective=MaskedLMConfig(mask_fraction=0.3, two_segment_fraction=0.0),
        optim=TINY_OPTIM,
        schedule=TINY_SCHEDULE,
        train=TINY_TRAIN,
    )


def tiny_deberta() -> DebertaConfig:
    """The encoder of the tiny DeBERTa recipes."""
    return DebertaConfig(
        vocab_size=None,
        embedding_size=128,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=128,
        max_relative_positions=128,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
