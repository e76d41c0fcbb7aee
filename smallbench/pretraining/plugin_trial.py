"""A trial step for plug-ins.

A mistake in a user's own code is found in seconds, before a directory or a storage is touched.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallbench.data.shards import TokenRows
from smallbench.errors import ConfigError
from smallbench.objectives.masking import micro_batches, step_generator
from smallbench.train.build import build_objective, vocabulary_of
from smallbench.train.config import PretrainConfig, plugins_of
from smallbench.train.optim import build_optimizer
from smallbench.train.schedule import schedule_of

TRIAL_ROWS = 2


def try_plugins(config: PretrainConfig, rows: TokenRows) -> None:
    """Train a step of two rows on the CPU if `config` names plug-ins, and discard it.

    Raises what their code raises, and `ConfigError` if they violate a protocol.
    """
    if not plugins_of(config):
        return
    with torch.random.fork_rng(devices=[]):
        objective = build_objective(config, vocabulary_of(rows.tokenizer))
        ids_BL = rows.take(np.arange(min(TRIAL_ROWS, len(rows))))
        corrupted = objective.corrupt(ids_BL, step_generator(0, 0), 0.0)
        [batch] = micro_batches(corrupted, TRIAL_ROWS)
        hidden_BLD = objective.model(batch)
        _check_hidden(config, hidden_BLD, tuple(batch.input_ids.shape))
        sums, counted = objective(batch), objective.num_targets(batch)
        name = config.objective.objective
        terms = set(objective.weights)
        if set(sums.losses) != terms or set(counted) != terms:
            raise ConfigError(
                f"objective {name}: 'weights', 'num_targets' and the losses must name the same "
                f"terms, not {sorted(terms)}, {sorted(counted)} and {sorted(sums.losses)}"
            )
        for term, loss in sums.losses.items():
            if loss.ndim or not torch.isfinite(loss):
                raise ConfigError(
                    f"objective {name}: the loss {term!r} of the first rows is "
                    f"{_described(loss)}; expected one finite number, the sum over its targets"
                )
        torch.autograd.backward(list(sums.losses.values()))
        objective.train_flops(batch)
        build_optimizer(objective, config.optim).step()
        for fraction in (0.0, 1.0):
            _check_schedule(config, schedule_of(config.schedule)(fraction))


def _check_schedule(config: PretrainConfig, factor: Any) -> None:
    if not isinstance(factor, float | int) or not math.isfinite(factor) or factor < 0:
        raise ConfigError(
            f"schedule {config.schedule.schedule} returns {factor!r}; expected a finite factor of "
            "the peak learning rate, 0 or more"
        )


def _check_hidden(config: PretrainConfig, hidden_BLD: Any, shape: tuple[int, ...]) -> None:
    expected = (*shape, config.model.hidden_size)
    if not isinstance(hidden_BLD, Tensor) or tuple(hidden_BLD.shape) != expected:
        raise ConfigError(
            f"architecture {config.model.architecture}: forward returns {_described(hidden_BLD)}; "
            f"expected hidden states of the shape {list(expected)} (rows, tokens, hidden_size)"
        )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of the shape {list(value.shape)}" if value.ndim else f"{value.item()}"
