"""Count the parameters and the floating-point operations of a claimed pretraining.

Computed from an entry's sizes without torch. For other architectures or objectives (plug-ins), the
model counts its own operations while it trains, and the log has the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from smallbench.leaderboard.entry import SIZE_NAMES, Model, Stage
from smallbench.models import ARCHITECTURES
from smallbench.models.config import DebertaConfig, EncoderConfig, RoformerConfig
from smallbench.models.flops import SCORE_TERMS, transformer_flops

MASKED_LM, REPLACED_TOKEN = "masked_lm", "replaced_token"
CONFIGURED = ("max_relative_positions", "vocab_size_multiple")
"""Sizes that the configuration has and an entry's `model` does not."""


def encoder_config(model: Model, settings: dict[str, Any]) -> EncoderConfig | None:
    """Return the configuration of an entry's encoder.

    None if its sizes are not all known, or if its architecture cannot be counted here. `settings`
    is the configuration's part `model`. Raises `ConfigError` for invalid sizes.
    """
    sizes = {name: getattr(model, name) for name in SIZE_NAMES}
    if model.architecture not in SCORE_TERMS or None in sizes.values():
        return None
    found = ARCHITECTURES.config_class(model.architecture)
    known = {field.name for field in fields(found)}
    for name in CONFIGURED:
        value = settings.get(name)
        if name in known and type(value) is int and value > 0:
            sizes[name] = value
    encoder: EncoderConfig = found(**sizes)
    return encoder


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of an encoder without a head."""

    total: int
    without_embeddings: int
    """Also without the tables of tokens, positions and segments."""


def count_parameters(config: EncoderConfig) -> ParameterCount:
    """Count them; the vocabulary is not padded, since exports are not."""
    D, E, F = config.hidden_size, config.embedding_size, config.intermediate_size
    assert config.vocab_size is not None, "an entry has its tokenizer's"
    tables = config.vocab_size * E
    project = E * D if E != D else 0
    attention = 4 * (D * D + D)
    if isinstance(config, DebertaConfig):
        # Two more maps, for positions, but as many biases: keys have none, and one of the maps has
        # one.
        attention += 2 * D * D
        rest = project + 2 * D
        tables += 2 * config.max_relative_positions * D
    else:
        rest = project + (D if project else 0) + 2 * E
        learned = 0 if isinstance(config, RoformerConfig) else config.max_position_embeddings
        tables += (learned + config.type_vocab_size) * E
    layer = attention + 2 * D * F + D + F + 4 * D
    inner = config.num_hidden_layers * layer + rest
    return ParameterCount(total=inner + tables, without_embeddings=inner)


def train_flops(
    config: EncoderConfig,
    stages: Iterable[Stage],
    *,
    objective: str,
    mask_fraction: float,
    generator_width: float,
) -> float | None:
    """Return the operations of a whole pretraining: forward, and backward at twice the forward.

    None if the objective cannot be counted; `ConfigError` if a generator has no whole head.
    """
    if objective not in (MASKED_LM, REPLACED_TOKEN):
        return None
    is_pair = objective == REPLACED_TOKEN
    predictor = config.narrowed(generator_width) if is_pair else config
    total = 0.0
    for stage in stages:
        count = partial(
            transformer_flops,
            num_rows=stage.num_steps * stage.global_batch_size,
            length=stage.sequence_length,
            architecture=config.architecture,
        )
        total += count(predictor, "tokens", num_targets=round(mask_fraction * stage.num_tokens))
        if is_pair:
            total += count(config, "replaced", num_targets=stage.num_tokens)
    return 3 * total
