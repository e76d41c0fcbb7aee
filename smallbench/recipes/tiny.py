"""What the tiny recipes of all families share, so that they can be compared: numbers and network.

They learn something in minutes on two CPU cores. Narrow rather than shallow: at equal time, four
layers of width 128 see two and a half times the tokens that four of width 256 would. No dropout,
since no token is seen often enough to be learned by heart (Geiping & Goldstein 2022, "Cramming",
§4.2). The vocabulary is the corpus's; a small one (`prepare --vocab_size=8192`) keeps the
predictor's share of the work small. All of them enter the tiny track (docs/tiny_track.md), where
'smallbench enter' fits their schedule to its FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smallbench.models.config import EncoderConfig
from smallbench.objectives.config import ObjectiveConfig
from smallbench.recipes.base import C, Recipe, encoder, recipe
from smallbench.train.config import (
    AdamWConfig,
    LinearSchedule,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)

TINY_OPTIM = AdamWConfig(learning_rate=2e-3)

# Twice BERT's targets for a quarter more time: after 600 steps of BERT, the loss on masked tokens
# alone was 5.72 with 0.30 and 5.96 with 0.15.
TINY_MASK_FRACTION = 0.3


def tiny_facts(
    *, parameters: str, track_steps: int, expected: str, measured: str = ""
) -> Callable[[Callable[[], PretrainConfig]], Recipe]:
    """Return `recipe` for a tiny one; `track_steps` are those that the tiny track's FLOPs allow."""
    time = f"; measured: {measured}" if measured else ""
    return recipe(
        parameters=parameters,
        source="this project, for CPUs",
        budget=f"5,200 steps of 32 x 128 tokens (21M tokens){time}, 2 cores; the tiny track: "
        f"{track_steps:,} steps ({track_steps * 32 * 128 / 1e6:.0f}M tokens)",
        expected=expected,
    )


def tiny_encoder(config_class: type[C], *, num_attention_heads: int = 2, **values: Any) -> C:
    """Return an encoder of the shared size; `values` are what only its architecture has."""
    return encoder(
        config_class,
        vocab_size=None,
        embedding_size=128,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=128,
        # BERT's 0.02 leaves the branches of so narrow a model next to silent (0.02 × √128 is a
        # third of what BERT-Base has); the held-out loss fell faster with 0.05.
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **values,
    )


def tiny_recipe(
    name: str,
    model: EncoderConfig,
    objective: ObjectiveConfig,
    optim: OptimizerConfig = TINY_OPTIM,
) -> PretrainConfig:
    """Return the recipe of a network and an objective with the shared budget."""
    return PretrainConfig(
        recipe=name,
        sequence_length=128,
        model=model,
        objective=objective,
        optim=optim,
        schedule=LinearSchedule(warmup_fraction=0.02),  # 104 steps; for shorter runs, raise it
        train=TrainConfig(
            max_steps=5_200,
            global_batch_size=32,
            log_every_steps=20,
            eval_every_steps=500,
            num_eval_rows=512,
            save_every_steps=500,
        ),
    )
