"""Masked-language modelling (Devlin et al. 2019, §3.1): guess the tokens that were hidden.

Shapes: B rows, L tokens a row, D hidden, M targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.config import EncoderConfig
from smallbench.objectives.base import Sums
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.corruption import corrupt, micro_batches
from smallbench.objectives.masking import IntArray, Vocabulary
from smallbench.objectives.token_loss import loss_of_targets


class MaskedLM(nn.Module):
    """The objective with its model; the head runs only where there are targets."""

    weights: Mapping[str, float] = {"mlm": 1.0}
    head = "tokens"
    """What the model that is exported predicts."""

    def __init__(self, config: MaskedLMConfig, model: EncoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.model: Any = ARCHITECTURES[model.architecture](model, head=self.head)

    @property
    def module(self) -> nn.Module:
        """Itself: the objective's parameters are its model's."""
        return self

    def corrupt(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Clean rows → a global batch with hidden tokens."""
        return corrupt(ids_BL, self.config, self.vocabulary, generator, fraction=fraction)

    def micro_batches(self, batch: Batch, num_rows: int) -> list[Batch]:
        """Cut a corrupted global batch into micro-batches with their targets listed."""
        return micro_batches(batch, num_rows)

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Hidden tokens."""
        assert batch.target_ids is not None
        return {"mlm": batch.target_ids.numel()}

    def forward(self, batch: Batch) -> Sums:
        """Cross-entropy, and in evaluation right guesses, summed over the hidden tokens."""
        (loss, guesses_M, _), ids_M = loss_of_targets(
            self.model,
            batch,
            vocab_size=self.vocabulary.size,
            guess=not self.training,  # looking for the best of V tokens costs time
        )
        if guesses_M is None:
            return Sums(losses={"mlm": loss})
        correct = (guesses_M == ids_M).sum()
        return Sums(losses={"mlm": loss}, counts={"accuracy": ("mlm", correct)})

    def train_flops(self, batch: Batch) -> int:
        """Forward plus backward at twice the forward."""
        assert batch.target_ids is not None
        rows, length = batch.input_ids.shape
        return 3 * int(
            self.model.forward_flops(
                num_rows=rows, length=length, num_targets=batch.target_ids.numel()
            )
        )
