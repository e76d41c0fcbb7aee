"""The parts of a step as a configuration defines them: objective, budget, learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from smallbench.data.shards import TokenizerInfo
from smallbench.data.tokenizer import Tokenizer
from smallbench.models.encoder import half_residual
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.base import PretrainObjective
from smallbench.objectives.masking import Vocabulary
from smallbench.train.budget import Budget, Progress
from smallbench.train.config import PretrainConfig
from smallbench.train.schedule import rate_factor, schedule_of


def vocabulary_of(info: TokenizerInfo | Tokenizer) -> Vocabulary:
    """Return what corruption needs of a tokenizer."""
    return Vocabulary(
        size=info.vocab_size,
        pad_id=info.pad_id,
        cls_id=info.cls_id,
        sep_id=info.sep_id,
        mask_id=info.mask_id,
        special_ids=tuple(info.special_ids),
    )


def build_objective(config: PretrainConfig, vocabulary: Vocabulary) -> PretrainObjective:
    """Return the objective with fresh weights, drawn from PyTorch's global generator."""
    build = OBJECTIVES[config.objective.objective]
    objective: PretrainObjective = build(config.objective, config.model, vocabulary)
    if config.train.half_residual:
        half_residual(objective)
    return objective


def budget_of(config: PretrainConfig) -> Budget:
    """Return the run's limits."""
    train, along = config.train, config.schedule.along
    return Budget(
        max_steps=train.max_steps if along == "steps" else math.inf,
        max_seconds=math.inf if train.max_hours is None else 3600 * train.max_hours,
        max_flops=math.inf if train.max_flops is None else train.max_flops,
        along=along,
    )


def learning_rate_of(config: PretrainConfig) -> Callable[[Progress], float]:
    """Return the learning rate of the step that follows a `Progress`."""
    budget, decay = budget_of(config), schedule_of(config.schedule)
    total = budget.total
    warmup = config.schedule.warmup_fraction * total
    if budget.along == "steps":
        warmup = int(warmup)

    def learning_rate(progress: Progress) -> float:
        factor = rate_factor(budget.done(progress), total=total, warmup=warmup, decay=decay)
        return config.optim.learning_rate * factor

    return learning_rate
