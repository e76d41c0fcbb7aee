"""Facts about a recipe besides its configuration, and the shape that all networks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from smallbench.models.config import EncoderConfig
from smallbench.train.config import PretrainConfig

C = TypeVar("C", bound=EncoderConfig)


@dataclass(frozen=True)
class Recipe:
    """A configuration with its source, its budget and the score to expect of it."""

    build: Callable[[], PretrainConfig]
    parameters: str
    """Number of trainable parameters, for people: `13.6M parameters`."""
    source: str
    budget: str
    """Hardware and time, and whether they were measured."""
    expected: str
    """Expected score and its source."""

    def __call__(self) -> PretrainConfig:
        """The configuration."""
        return self.build()

    @property
    def description(self) -> str:
        """The docstring of the function that builds it."""
        return self.build.__doc__ or ""


def recipe(*, parameters: str, source: str, budget: str, expected: str
           ) -> Callable[[Callable[[], PretrainConfig]], Recipe]:  # fmt: skip
    """Turn a function that returns a configuration into a `Recipe`."""
    return lambda build: Recipe(build, parameters, source, budget, expected)


def encoder(config_class: type[C], *, hidden_size: int, **values: Any) -> C:
    """Return a network with BERT's proportions: feed-forward layers four times as wide as it is.

    The vocabulary is BERT-uncased's WordPiece, unless `values` say otherwise.
    """
    shape = {"vocab_size": 30_522, "intermediate_size": 4 * hidden_size}
    shape |= {"max_position_embeddings": 512}
    return config_class(hidden_size=hidden_size, **(shape | values))
