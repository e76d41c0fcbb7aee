"""Masked-language modelling (Devlin et al. 2019, §3.1): predict the hidden tokens.

Shapes: B rows, L tokens a row, D hidden, M targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.config import EncoderConfig
from smallbench.models.encoder import Head
from smallbench.objectives.base import PretrainObjective, Sums
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.corruption import corrupt
from smallbench.objectives.masking import BoolArray, IntArray, Vocabulary, choose_positions
from smallbench.objectives.target_loss import loss_of_targets


class MaskedLM(PretrainObjective):
    """The objective with its model; the head runs only at the targets."""

    weights: Mapping[str, float] = {"mlm": 1.0}
    head: Head = "tokens"

    def __init__(self, config: MaskedLMConfig, model: EncoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.model = ARCHITECTURES[model.architecture](model, head=self.head)

    def corrupt(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Clean rows → a global batch with hidden tokens."""
        return corrupt(
            ids_BL, self.config, self.vocabulary, generator, fraction=fraction, choose=self.choose
        )

    def choose(
        self, candidates_BL: BoolArray, fraction: float, generator: np.random.Generator
    ) -> BoolArray:
        """Choose the tokens to hide; a subclass may override it."""
        return choose_positions(candidates_BL, fraction, generator)

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Return the number of hidden tokens."""
        assert batch.target_ids is not None
        return {"mlm": batch.target_ids.numel()}

    def forward(self, batch: Batch) -> Sums:
        """Return the summed cross-entropy, and in evaluation the correct guesses."""
        (loss, guesses_M, _), ids_M = loss_of_targets(
            self.model,
            batch,
            vocab_size=self.vocabulary.size,
            guess=not self.training,  # the argmax over V tokens costs time
        )
        if guesses_M is None:
            return Sums(losses={"mlm": loss})
        correct = (guesses_M == ids_M).sum()
        return Sums(losses={"mlm": loss}, counts={"accuracy": ("mlm", correct)})
