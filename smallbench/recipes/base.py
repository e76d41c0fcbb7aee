"""Facts about a recipe besides its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smallbench.train.config import PretrainConfig


@dataclass(frozen=True)
class Recipe:
    """A configuration with its source, its budget and the score to expect of it."""

    build: Callable[[], PretrainConfig]
    parameters: str
    """Trainable parameters, for people: `13.6M`."""
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
