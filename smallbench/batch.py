"""The one form in which token data travels from a data source through an objective to a model.

Shapes: B rows, L tokens a row, M prediction targets in the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that no loss looks at (PyTorch's and Hugging Face's convention)."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch; optional ones are None if they have no information.

    `attention_mask` is None if every position has a token, `token_type_ids` if all are 0. `labels`
    is BL for token objectives (`IGNORED` without a target), B for classification.
    """

    input_ids: Tensor  # BL, int64
    attention_mask: Tensor | None = None  # BL, bool, True = token
    token_type_ids: Tensor | None = None  # BL, int64
    labels: Tensor | None = None  # BL or B
    target_positions: Tensor | None = None  # M, indices into B*L
    target_ids: Tensor | None = None  # M
    uniforms: Tensor | None = None  # BL, float32 in [0, 1): to sample with
    target_uniforms: Tensor | None = None  # M
    relations: Tensor | None = None  # B2, float32 in [0, 1]; NaN in rows without related segments

    @property
    def num_rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """Positions that hold a token, padding excluded."""
        if self.attention_mask is None:
            return self.input_ids.numel()
        return int(self.attention_mask.sum())

    @property
    def num_targets(self) -> int:
        """M, of a batch whose targets are listed."""
        assert self.target_ids is not None
        return self.target_ids.numel()

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on `device`; copies from pinned memory overlap with computation."""
        if device.type == "cpu":
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, num_rows: int) -> list[Batch]:
        """Consecutive parts of at most `num_rows` rows; listed targets are dropped."""
        rowwise = (
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "labels",
            "uniforms",
            "relations",
        )
        parts = []
        for start in range(0, self.num_rows, num_rows):
            rows = slice(start, start + num_rows)
            values: dict[str, Any] = {name: getattr(self, name) for name in rowwise}
            parts.append(Batch(**{k: v[rows] for k, v in values.items() if v is not None}))
        return parts

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked host memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to each tensor."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: function(v) for k, v in values.items() if v is not None})


def with_targets(batch: Batch) -> Batch:
    """Add the flat positions and ids of the labels that are targets.

    Done on the host, before the copy: finding them on a GPU would make it wait for itself.
    """
    assert batch.labels is not None
    flat = batch.labels.reshape(-1)
    positions = (flat != IGNORED).nonzero().squeeze(1)
    uniforms = None if batch.uniforms is None else batch.uniforms.reshape(-1)[positions]
    return replace(
        batch,
        target_positions=positions,
        target_ids=flat[positions],
        uniforms=None,  # of no more use, and not to be copied to the device
        target_uniforms=uniforms,
    )
