"""What the systems of Small-Bench NLP (arXiv 2109.10847) share: network, optimizer and budget.

The paper's network and optimizer are those of ELECTRA-Small (Clark et al. 2020, table 6).
"""

from __future__ import annotations

from typing import Any

from smallbench.models.config import EncoderConfig
from smallbench.objectives.config import ObjectiveConfig
from smallbench.recipes.base import C, encoder
from smallbench.train.config import AdamWConfig, LinearSchedule, PretrainConfig, TrainConfig


def small_budget(hours: str) -> str:
    """Return the budget that the systems share, and the planned hours of one of them."""
    return (
        f"1M steps of 128 x 128 tokens (16.4B tokens); {hours} hours of a V100, planned, not "
        "measured"
    )


def small_encoder(config_class: type[C], *, embedding_size: int = 128, **values: Any) -> C:
    """Return an encoder of the shared size; `values` are what only its architecture has."""
    return encoder(
        config_class,
        embedding_size=embedding_size,
        hidden_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        **values,
    )


def small_recipe(
    name: str, model: EncoderConfig, objective: ObjectiveConfig, **optim: float
) -> PretrainConfig:
    """Return the recipe of a network and an objective; `optim` differs from the shared AdamW."""
    shared = {
        "learning_rate": 5e-4,  # ELECTRA, table 6
        "epsilon": 1e-6,
        "weight_decay": 0.01,
        "clip_norm": 1.0,  # google-research/electra optimization.py
    }
    return PretrainConfig(
        recipe=name,
        sequence_length=128,  # paper §4
        model=model,
        objective=objective,
        optim=AdamWConfig(**(shared | optim)),  # type: ignore[arg-type]
        schedule=LinearSchedule(warmup_fraction=0.01),  # 10,000 of 1M steps
        train=TrainConfig(max_steps=1_000_000, global_batch_size=128),
    )
