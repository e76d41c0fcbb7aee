"""The objective of fine-tuning: cross-entropy over classes, or squared error for one number.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.objectives.base import Objective, Sums


class Classification(Objective):
    """A model from a `Batch` to logits_BC with its loss, summed over the rows."""

    weights: Mapping[str, float] = {"task": 1.0}

    def __init__(self, model: nn.Module, *, is_regression: bool) -> None:
        super().__init__()
        self.model = model
        self.is_regression = is_regression
        matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
        tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
        self._multiplied_parameters = matrices - tables

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Return the number of rows."""
        return {"task": batch.num_rows}

    def logits(self, batch: Batch) -> Tensor:
        """Batch → logits_BC (C = 1 for a regression)."""
        logits_BC: Tensor = self.model(batch)
        return logits_BC.float()

    def forward(self, batch: Batch) -> Sums:
        """Return the loss summed over the rows, and for classes the number of correct answers."""
        assert batch.labels is not None
        logits_BC = self.logits(batch)
        if self.is_regression:
            loss = F.mse_loss(logits_BC.squeeze(1), batch.labels.float(), reduction="sum")
            return Sums(losses={"task": loss})
        loss = F.cross_entropy(logits_BC, batch.labels, reduction="sum")
        correct = (logits_BC.detach().argmax(dim=-1) == batch.labels).sum()
        return Sums(losses={"task": loss}, counts={"accuracy": ("task", correct)})

    def predict(self, batch: Batch) -> Tensor:
        """Return the most likely class of each row, or the predicted number; B."""
        logits_BC = self.logits(batch)
        return logits_BC.squeeze(1) if self.is_regression else torch.argmax(logits_BC, dim=-1)

    def train_flops(self, batch: Batch) -> int:
        """Return 6 × multiplied parameters × tokens (Kaplan et al. 2020, §2.1); no attention."""
        return 6 * self._multiplied_parameters * batch.input_ids.numel()
