"""What the trainer needs of an objective, whatever it is.

A step's loss is `Σ_term weight × (sum over the step's targets) / (number of the step's targets)`.
Each term counts its own targets over the whole step before the first backward pass: averaging the
means of micro-batches instead weighs targets unevenly (transformers#34191, torchtitan#2206).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from smallbench.batch import Batch


@dataclass(frozen=True)
class Sums:
    """One micro-batch's contribution: for each term, its loss and other quantities, summed.

    `losses` have a gradient; `counts` (such as correct predictions) are divided by the same
    number of targets when they are reported.
    """

    losses: Mapping[str, Tensor]
    counts: Mapping[str, tuple[str, Tensor]] = field(default_factory=dict)
    """Name of the reported metric → (term whose targets divide it, sum)."""


class Objective(Protocol):
    """A module from micro-batch to summed losses, and the number of targets of each term."""

    weights: Mapping[str, float]
    """Term → its weight in the loss."""

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained and whose state is saved."""
        ...

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Targets of each term in `batch`, known before the forward pass."""
        ...

    def __call__(self, batch: Batch) -> Sums:
        """Summed losses and counts of `batch`."""
        ...

    def train_flops(self, batch: Batch) -> int:
        """Floating-point operations that training on `batch` needs: forward and backward."""
        ...
