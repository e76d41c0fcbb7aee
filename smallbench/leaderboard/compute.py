"""What a claimed pretraining must have cost: parameters and floating-point operations.

The counts are those of `models.encoder.Encoder`, from an entry's sizes alone and without torch; a
test holds the two together. An architecture that is not in `COUNTED` cannot be checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smallbench.leaderboard.entry import Model, Stage

COUNTED = ("bert", "electra", "roberta", "deberta")
REPLACED_TOKEN = "replaced_token"  # noqa: S105 - an objective
SPAN_OF_DEBERTA = 512  # relative positions, microsoft/deberta-base


@dataclass(frozen=True)
class Sizes:
    """What the counts need of an encoder: all sizes known."""

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    embedding_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    max_relative_positions: int = SPAN_OF_DEBERTA

    @classmethod
    def of(cls, model: Model, *, max_relative_positions: int | None = None) -> Sizes | None:
        """The sizes of an entry's model; None where one is missing or nothing can be counted."""
        values = {
            name: getattr(model, name)
            for name in cls.__annotations__
            if name != "max_relative_positions"
        }
        if model.architecture not in COUNTED or None in values.values():
            return None
        return cls(**values, max_relative_positions=max_relative_positions or SPAN_OF_DEBERTA)

    def narrowed(self, width: float) -> Sizes:
        """The generator of an ELECTRA at `width` (`models.config.EncoderConfig.narrowed`)."""
        return Sizes(
            **{
                **self.__dict__,
                "hidden_size": round(self.hidden_size * width),
                "intermediate_size": round(self.intermediate_size * width),
            }
        )


@dataclass(frozen=True)
class ParameterCount:
    """Of an encoder without a head."""

    total: int
    without_embeddings: int
    """Nor any table of tokens, positions or segments."""


def count_parameters(sizes: Sizes) -> ParameterCount:
    """Count them; the vocabulary is not padded, as it is in no export."""
    D, E, F = sizes.hidden_size, sizes.embedding_size, sizes.intermediate_size
    project = E * D if E != D else 0
    tables = sizes.vocab_size * E
    attention = 4 * (D * D + D)
    if sizes.architecture == "deberta":
        # Two maps more, for positions; as many biases, for keys have none and one of the maps has.
        attention += 2 * D * D
        rest = project + 2 * D
        tables += 2 * sizes.max_relative_positions * D
    else:
        rest = project + (D if project else 0) + 2 * E
        tables += (sizes.max_position_embeddings + sizes.type_vocab_size) * E
    layer = attention + 2 * D * F + D + F + 4 * D
    inner = sizes.num_hidden_layers * layer + rest
    return ParameterCount(total=inner + tables, without_embeddings=inner)


def forward_flops(sizes: Sizes, *, length: int, num_targets: float, head: str) -> float:
    """Operations of one row's forward pass: matrix products only, 2 a multiply-add.

    As `Encoder.forward_flops`; `head` is `tokens` or `replaced`.
    """
    D, E = sizes.hidden_size, sizes.embedding_size
    scores = 2 * length * D * (2 if sizes.architecture == "deberta" else 1)
    layer = 4 * D * D + 2 * D * sizes.intermediate_size + scores
    per_token = sizes.num_hidden_layers * layer + (E * D if E != D else 0)
    per_target = D * E + E * sizes.vocab_size if head == "tokens" else D * D + D
    return 2.0 * (length * per_token + num_targets * per_target)


def train_flops(
    sizes: Sizes,
    stages: Iterable[Stage],
    *,
    objective: str,
    mask_fraction: float,
    generator_width: float,
) -> float:
    """Operations of a whole pretraining: forward, and backward at twice the forward."""
    total = 0.0
    for stage in stages:
        length = stage.sequence_length
        targets = mask_fraction * length
        row = forward_flops(sizes, length=length, num_targets=targets, head="tokens")
        if objective == REPLACED_TOKEN:
            generator = sizes.narrowed(generator_width)
            row = forward_flops(generator, length=length, num_targets=targets, head="tokens")
            row += forward_flops(sizes, length=length, num_targets=length, head="replaced")
        total += 3 * row * stage.num_steps * stage.global_batch_size
    return total
