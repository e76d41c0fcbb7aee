"""Corruption of token rows: pure functions of a random generator, NumPy in and out.

Shapes: B rows, L tokens a row. All draws are made for the whole global batch at once, so that
the corruption of a step does not depend on how it is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallbench.batch import IGNORED

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


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
    candidates_BL: BoolArray, fraction: float, generator: np.random.Generator
) -> BoolArray:
    """Choose `fraction` of each row's candidates, uniformly and without replacement.

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


Chooser = Callable[[BoolArray, float, np.random.Generator], BoolArray]
"""A function that selects targets among the candidates, like `choose_positions`."""


def mask_tokens(
    ids_BL: IntArray,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    *,
    mask_fraction: float,
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
