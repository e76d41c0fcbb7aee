"""Masking of token rows: pure functions of a random generator, and the batch that they make.

Shapes: B rows, L tokens a row. All draws are made for the whole global batch at once, so that
the corruption of a step does not depend on how it is cut into micro-batches. The masking rate is
`mask_fraction` of `objectives.config`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smallbench.batch import IGNORED, Batch, with_targets
from smallbench.objectives.config import CorruptionConfig

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vocabulary:
    """Properties of a tokenizer that corruption needs."""

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]


def step_generator(seed: int, position: int) -> np.random.Generator:
    """Return the generator of the batch that begins at sample `position`: a function of both alone.

    Counter-based (Philox, Salmon et al. 2011), so a resumed run seeks to it in O(1).
    """
    return np.random.Generator(np.random.Philox(key=[seed, position]))


def is_special(ids_BL: IntArray, vocabulary: Vocabulary) -> BoolArray:
    """Return True for special tokens ([CLS], [SEP], [PAD], …)."""
    table = np.zeros(vocabulary.size, dtype=bool)
    table[list(vocabulary.special_ids)] = True
    special_BL: BoolArray = table[ids_BL]
    return special_BL


def choose_positions(
    candidates_BL: BoolArray, fraction: float | FloatArray, generator: np.random.Generator
) -> BoolArray:
    """Choose `fraction` of each row's candidates, uniformly and without replacement.

    `fraction` is one number, or one for each row.

    The count is rounded for each row and at least 1 if there is a candidate (google-research/
    electra `pretrain_helpers.mask`), so full rows always have the same number of targets.
    """
    num_candidates_B = candidates_BL.sum(axis=1)
    num_chosen_B = np.maximum(np.rint(num_candidates_B * fraction).astype(np.int64), 1)
    num_chosen_B = np.minimum(num_chosen_B, num_candidates_B)
    keys_BL = generator.random(candidates_BL.shape)
    keys_BL[~candidates_BL] = 2.0  # sorted after every candidate
    rank_BL = keys_BL.argsort(axis=1).argsort(axis=1)
    chosen_BL: BoolArray = rank_BL < num_chosen_B[:, None]
    return chosen_BL


Chooser = Callable[[BoolArray, float | FloatArray, np.random.Generator], BoolArray]
"""A function that selects targets among the candidates, like `choose_positions`. The fraction is
one number, or one for each row if rows have different masking rates."""


def mask_tokens(
    ids_BL: IntArray,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    *,
    mask_fraction: float | FloatArray,
    mask_token_fraction: float,
    random_token_fraction: float,
    choose: Chooser = choose_positions,
) -> tuple[IntArray, IntArray]:
    """Return BERT's corruption (Devlin et al. 2019, §3.1): corrupted ids_BL and labels_BL.

    Labels are the original token at the chosen positions and `IGNORED` elsewhere. Random tokens are
    drawn from the ordinary vocabulary, never from the special tokens.
    """
    special_BL = is_special(ids_BL, vocabulary)
    chosen_BL = choose(~special_BL, mask_fraction, generator)
    fate_BL = generator.random(ids_BL.shape)
    becomes_mask_BL = chosen_BL & (fate_BL < mask_token_fraction)
    becomes_random_BL = (
        chosen_BL & ~becomes_mask_BL & (fate_BL < mask_token_fraction + random_token_fraction)
    )
    ordinary = np.setdiff1d(np.arange(vocabulary.size), vocabulary.special_ids)
    corrupted_BL = ids_BL.copy()
    corrupted_BL[becomes_mask_BL] = vocabulary.mask_id
    corrupted_BL[becomes_random_BL] = generator.choice(ordinary, size=int(becomes_random_BL.sum()))
    return corrupted_BL, np.where(chosen_BL, ids_BL, IGNORED)


def split_segments(
    ids_BL: IntArray, vocabulary: Vocabulary, generator: np.random.Generator, *, fraction: float
) -> tuple[IntArray, IntArray | None]:
    """Split `fraction` of the full rows into two segments: ids_BL and token_type_ids_BL.

    A [SEP] replaces one token in the middle half of the row, and the type is 1 after it. Both
    segments are consecutive text of one document. Types are None if `fraction` is 0.
    """
    if fraction == 0:
        return ids_BL, None
    rows, length = ids_BL.shape
    cut_B = generator.random(rows) < fraction
    cut_B &= (ids_BL != vocabulary.pad_id).all(axis=1)
    at_B = generator.integers(length // 4, max(3 * length // 4, length // 4 + 1), size=rows)
    split_BL = ids_BL.copy()
    split_BL[cut_B, at_B[cut_B]] = vocabulary.sep_id
    types_BL = cut_B[:, None] & (np.arange(length)[None, :] > at_B[:, None])
    return split_BL, types_BL.astype(np.int64)


def relate_segments(
    ids_BL: IntArray, vocabulary: Vocabulary, generator: np.random.Generator, *, fraction: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """Make the second segment of `fraction` of the full rows repeat a part of the first.

    Returns ids_BL, token_type_ids_BL and relations_B2. A [SEP] replaces a token in the middle half
    of a row. After it stands the row's own text, or another full row's with probability 1/2, where
    a random share of runs is overwritten by runs of the first segment, somewhat reordered.

    The first relation is the share of the second segment's information that is in tokens of the
    first; a token of frequency p in the batch has the information -log p. The second relation is
    1.0 for the row's own text and 0.0 for another's. Both are NaN in rows that stay as they are.
    """
    rows, length = ids_BL.shape
    at_L = np.arange(length)
    full_B = (ids_BL != vocabulary.pad_id).all(axis=1)
    chosen_B = choose_positions(full_B[None, :], fraction, generator)[0]
    cut_B1 = generator.integers(length // 4, 3 * length // 4, size=(rows, 1))
    is_second_BL = (at_L > cut_B1) & (at_L < length - 1)

    is_own_B1 = (generator.random((rows, 1)) < 0.5) | (full_B.sum() < 2)
    others_BL = ids_BL.copy()
    others_BL[full_B] = np.roll(ids_BL[full_B], 1, axis=0)
    text_BL = np.where(is_own_B1, ids_BL, others_BL)
    # Runs of about three tokens are copied or not, from where they stand in the first segment.
    run_BL = (generator.random((rows, length)) < 1 / 3).cumsum(axis=1) % length
    share_B1 = generator.random((rows, 1))
    is_copied_BL = np.take_along_axis(generator.random((rows, length)), run_BL, 1) < share_B1
    shift_B1 = generator.integers(0, cut_B1 - 1, endpoint=True)
    source_BL = 1 + (at_L - cut_B1 - 1 + shift_B1) % np.maximum(cut_B1 - 1, 1)
    copied_BL = np.take_along_axis(ids_BL, source_BL, axis=1)
    second_BL = np.where(is_copied_BL, copied_BL, text_BL)
    # Tokens move by up to `reach` places within the segment.
    reach_B1 = generator.choice([0.0, 2.0, 5.0], size=(rows, 1))
    keys_BL = at_L + generator.random((rows, length)) * reach_B1
    keys_BL = np.where(is_second_BL, keys_BL, np.where(at_L > cut_B1, np.inf, at_L - length))
    second_BL = np.take_along_axis(second_BL, keys_BL.argsort(axis=1, kind="stable"), axis=1)

    related_BL = np.where(is_second_BL, second_BL, ids_BL)
    related_BL[at_L == cut_B1] = vocabulary.sep_id
    counts = np.bincount(ids_BL.ravel(), minlength=vocabulary.size)
    information = -np.log(np.maximum(counts, 1) / ids_BL.size)
    information[list(vocabulary.special_ids)] = 0.0
    weight_BL = information[related_BL] * is_second_BL
    # A token of the first segment, as its row and id in one number.
    keyed_BL = related_BL + vocabulary.size * np.arange(rows)[:, None]
    is_first_BL = (at_L > 0) & (at_L < cut_B1)
    is_shared_BL = np.isin(keyed_BL, keyed_BL[is_first_BL])
    overlap_B = (weight_BL * is_shared_BL).sum(axis=1) / np.maximum(weight_BL.sum(axis=1), 1e-9)
    relations_B2 = np.stack([overlap_B, is_own_B1[:, 0]], axis=1).astype(np.float32)
    relations_B2[~chosen_B] = np.nan
    types_BL = (chosen_B[:, None] & (at_L > cut_B1)).astype(np.int64)
    return np.where(chosen_B[:, None], related_BL, ids_BL), types_BL, relations_B2


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
