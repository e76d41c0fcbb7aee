"""From clean rows to a corrupted global batch, for the objectives that hide tokens."""

from __future__ import annotations

import numpy as np
import torch

from smallbench.batch import Batch, with_targets
from smallbench.objectives.config import CorruptionConfig
from smallbench.objectives.masking import (
    Chooser,
    FloatArray,
    IntArray,
    Vocabulary,
    choose_positions,
    mask_tokens,
    split_segments,
)


def corrupt(
    ids_BL: IntArray,
    config: CorruptionConfig,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    *,
    fraction: float = 0.0,
    mask_fraction: float | FloatArray | None = None,
    with_uniforms: bool = False,
    choose: Chooser = choose_positions,
) -> Batch:
    """Corrupt clean rows to a global batch on the host, without targets listed.

    `fraction` is the completed part of the run; `mask_fraction` replaces the configured masking
    rate, with one number or one for each row. `with_uniforms` adds a uniform number for each
    position, to sample replacements with.
    """
    ids_BL, types_BL = split_segments(
        ids_BL, vocabulary, generator, fraction=config.two_segment_fraction
    )
    if mask_fraction is None:
        mask_fraction = config.mask_fraction_at(fraction)
    mask_BL = ids_BL != vocabulary.pad_id
    corrupted_BL, labels_BL = mask_tokens(
        ids_BL,
        vocabulary,
        generator,
        mask_fraction=mask_fraction,
        mask_token_fraction=config.mask_token_fraction,
        random_token_fraction=config.random_token_fraction,
        choose=choose,
    )
    uniforms_BL = generator.random(ids_BL.shape, dtype=np.float32) if with_uniforms else None
    return Batch(
        input_ids=torch.from_numpy(corrupted_BL),
        attention_mask=None if mask_BL.all() else torch.from_numpy(mask_BL),
        token_type_ids=None if types_BL is None else torch.from_numpy(types_BL),
        labels=torch.from_numpy(labels_BL),
        uniforms=None if uniforms_BL is None else torch.from_numpy(uniforms_BL),
    )


def micro_batches(batch: Batch, num_rows: int) -> list[Batch]:
    """Cut a corrupted global batch into micro-batches with their targets listed."""
    return [with_targets(part) for part in batch.split(num_rows)]
