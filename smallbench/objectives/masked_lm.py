"""Masked-language modelling (Devlin et al. 2019, §3.1): predict the hidden tokens.

With `related_fraction`, some rows have a second segment that repeats a part of the first, and a
head predicts from the mean over tokens how much. Tasks on pairs of sentences need an encoder that
finds a token of one segment in the other. A small one hardly learns that from masked tokens alone.

Shapes: B rows, L tokens a row, D hidden, M targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.config import EncoderConfig
from smallbench.models.encoder import Head
from smallbench.objectives.base import PretrainObjective, Sums
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.masking import (
    BoolArray,
    FloatArray,
    IntArray,
    Vocabulary,
    choose_positions,
    corrupt,
    relate_segments,
)


class MaskedLM(PretrainObjective):
    """The objective with its model; the head runs only at the targets."""

    weights: Mapping[str, float] = {"mlm": 1.0}
    head: Head = "tokens"

    def __init__(self, config: MaskedLMConfig, model: EncoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.model = ARCHITECTURES[model.architecture](model, head=self.head)
        self.relation_head: nn.Linear | None = None
        if config.related_fraction:
            self.weights = {"mlm": 1.0, "relation": config.related_weight}
            self.relation_head = nn.Linear(model.hidden_size, 2)

    def corrupt(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Clean rows → a global batch with hidden tokens."""
        if not self.config.related_fraction:
            return self.corrupt_held_out(ids_BL, generator, fraction)
        ids_BL, types_BL, relations_B2 = relate_segments(
            ids_BL, self.vocabulary, generator, fraction=self.config.related_fraction
        )
        rate = self.config.mask_fraction_at(fraction)
        rates_B = np.where(
            np.isnan(relations_B2[:, 0]), rate, self.config.related_mask_fraction
        ).astype(np.float32)
        return replace(
            corrupt(
                ids_BL,
                self.config,
                self.vocabulary,
                generator,
                mask_fraction=rates_B,
                choose=self.choose,
            ),
            token_type_ids=torch.from_numpy(types_BL),
            relations=torch.from_numpy(relations_B2),
        )

    def corrupt_held_out(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Clean rows → a global batch with hidden tokens, without related segments."""
        return corrupt(
            ids_BL, self.config, self.vocabulary, generator, fraction=fraction, choose=self.choose
        )

    def choose(
        self,
        candidates_BL: BoolArray,
        fraction: float | FloatArray,
        generator: np.random.Generator,
    ) -> BoolArray:
        """Choose the tokens to hide; a subclass may override it."""
        return choose_positions(candidates_BL, fraction, generator)

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Return the number of hidden tokens, and of relations to predict."""
        num_targets = {"mlm": batch.num_targets}
        if batch.relations is not None:
            num_targets["relation"] = int(batch.relations.isfinite().sum())
        return num_targets

    def forward(self, batch: Batch) -> Sums:
        """Return the summed losses, and in evaluation the correct guesses."""
        hidden_BLD = self.model(batch)
        (loss, guesses_M, _), ids_M = self.loss_of_targets(self.model, hidden_BLD, batch)
        losses = {"mlm": loss}
        if batch.relations is not None:
            losses["relation"] = self.relation_loss(hidden_BLD, batch)
        if guesses_M is None:
            return Sums(losses=losses)
        correct = (guesses_M == ids_M).sum()
        return Sums(losses=losses, counts={"accuracy": ("mlm", correct)})

    def relation_loss(self, hidden_BLD: Tensor, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of the relations; rows without relations add 0."""
        assert self.relation_head is not None
        assert batch.relations is not None
        # Rows with relations are full, so the mean needs no mask.
        scores_B2 = self.relation_head(hidden_BLD.mean(dim=1)).float()
        is_known_B2 = batch.relations.isfinite()
        wanted_B2 = batch.relations.nan_to_num()
        loss_B2 = F.binary_cross_entropy_with_logits(scores_B2, wanted_B2, reduction="none")
        return loss_B2.masked_fill(~is_known_B2, 0.0).sum()
