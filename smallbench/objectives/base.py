"""The interface between objectives and the trainer.

A step's loss is `Σ_term weight × (sum over the step's targets) / (number of the step's targets)`.
Each term counts its targets over the whole step before the first backward pass, because a mean of
the means of micro-batches weighs targets unevenly (transformers#34191, torchtitan#2206).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models.encoder import Encoder, Head
from smallbench.models.kernels.token_loss import TokenLoss, token_loss
from smallbench.objectives.masking import IntArray, Vocabulary


@dataclass(frozen=True)
class Sums:
    """Sums of one micro-batch: for each term, its loss and other quantities.

    `losses` have a gradient; `counts` (such as correct predictions) are divided by the same number
    of targets when they are reported.
    """

    losses: Mapping[str, Tensor]
    counts: Mapping[str, tuple[str, Tensor]] = field(default_factory=dict)
    """Name of the reported metric → (term whose targets divide it, sum)."""


class Objective(nn.Module, ABC):
    """A module from a micro-batch to summed losses. Its parameters are trained and saved."""

    weights: Mapping[str, float]
    """Term → its weight in the loss."""
    initial_loss_scale = 2.0**16
    """Initial loss scale of fp16; PyTorch's default."""

    @abstractmethod
    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Return the number of targets of each term in `batch`, known before the forward pass."""

    @abstractmethod
    def forward(self, batch: Batch) -> Sums:
        """Return the summed losses and counts of `batch`."""

    @abstractmethod
    def train_flops(self, batch: Batch) -> int:
        """Return the floating-point operations of training on `batch`: forward and backward."""


class PretrainObjective(Objective):
    """Interface of pretraining objectives to training, export and the planner.

    A subclass is built as `(config, model_config, vocabulary)` and draws its initial weights from
    PyTorch's global generator. Shapes: B rows, L tokens, D hidden, M targets.
    """

    head: Head
    """The head of the exported `model`."""
    model: Encoder
    """The network that is exported and fine-tuned."""
    vocabulary: Vocabulary

    def compile(self, *arguments: Any, **named: Any) -> None:
        """Compile the forward pass as `torch.nn.Module.compile` does, once for any number of
        targets."""
        super().compile(*arguments, **named)
        compiled = self._compiled_call_impl
        assert compiled is not None

        def call(batch: Batch) -> Any:
            for tensor in (batch.target_positions, batch.target_ids, batch.target_uniforms):
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled(batch)

        self._compiled_call_impl = call

    @abstractmethod
    def corrupt(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Return the global batch of clean rows, on the host and without targets listed.

        `fraction` is the part of the run that is done. Everything random comes from `generator`.
        """

    def corrupt_held_out(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Return the batch of clean rows on which the held-out loss is measured."""
        return self.corrupt(ids_BL, generator, fraction)

    def loss_of_targets(
        self, model: Encoder, hidden_BLD: Tensor, batch: Batch
    ) -> tuple[TokenLoss, Tensor]:
        """Return `token_loss` of the token head of `model` at the batch's targets, and their ids_M.

        Guesses are made in evaluation only; samples are drawn if the batch has uniform numbers.
        """
        assert batch.target_ids is not None
        result = token_loss(
            *model.token_scorer(hidden_BLD.flatten(0, 1)[batch.target_positions]),
            batch.target_ids,
            vocab_size=self.vocabulary.size,
            guess=not self.training,  # the argmax over V tokens costs time
            uniforms_M=batch.target_uniforms,
        )
        return result, batch.target_ids

    def train_flops(self, batch: Batch) -> int:
        """Return the forward pass of `model` three times: a backward pass costs two forwards."""
        rows, length = batch.input_ids.shape
        return 3 * self.model.forward_flops(
            num_rows=rows, length=length, num_targets=batch.num_targets
        )
