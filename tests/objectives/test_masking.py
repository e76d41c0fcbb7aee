"""The statistics and the determinism of corruption."""

import numpy as np
import pytest

from smallbench.batch import IGNORED
from smallbench.objectives.masking import (
    Vocabulary,
    choose_positions,
    is_special,
    mask_tokens,
    split_segments,
    step_generator,
)

VOCABULARY = Vocabulary(
    size=1000, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)


def rows(num_rows: int = 2000, length: int = 128) -> np.ndarray:
    generator = np.random.default_rng(0)
    ids_BL = generator.integers(5, VOCABULARY.size, size=(num_rows, length))
    ids_BL[:, 0], ids_BL[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    return ids_BL


def corrupt(ids_BL, seed=0, fraction=0.15):
    return mask_tokens(
        ids_BL,
        VOCABULARY,
        step_generator(seed, 0),
        mask_fraction=fraction,
        mask_token_fraction=0.8,
        random_token_fraction=0.1,
    )


def test_fifteen_percent_are_chosen_and_split_eighty_ten_ten():
    ids_BL = rows()
    corrupted_BL, labels_BL = corrupt(ids_BL)
    chosen = labels_BL != IGNORED
    assert (chosen.sum(axis=1) == 19).all(), "round(0.15 * 126) in every full row"
    fates = corrupted_BL[chosen]
    masked = (fates == VOCABULARY.mask_id).mean()
    kept = (fates == ids_BL[chosen]).mean()
    # 38,000 draws: four standard deviations are 0.008 and 0.006.
    assert masked == pytest.approx(0.8, abs=0.009)
    assert kept == pytest.approx(0.1 + 0.1 / 995, abs=0.007)
    assert 1 - masked - kept == pytest.approx(0.1, abs=0.007)


def test_labels_are_the_original_tokens_and_the_rest_is_untouched():
    ids_BL = rows()
    before = ids_BL.copy()
    corrupted_BL, labels_BL = corrupt(ids_BL)
    chosen = labels_BL != IGNORED
    assert (ids_BL == before).all(), "the clean rows are not written to"
    assert (labels_BL[chosen] == ids_BL[chosen]).all()
    assert (corrupted_BL[~chosen] == ids_BL[~chosen]).all()


def test_special_tokens_are_never_chosen_and_never_drawn():
    ids_BL = rows()
    ids_BL[::3, 60:] = VOCABULARY.pad_id
    corrupted_BL, labels_BL = corrupt(ids_BL, fraction=0.5)
    special = is_special(ids_BL, VOCABULARY)
    assert (labels_BL[special] == IGNORED).all()
    assert (corrupted_BL[special] == ids_BL[special]).all()
    new = corrupted_BL[(corrupted_BL != ids_BL) & (corrupted_BL != VOCABULARY.mask_id)]
    assert not np.isin(new, VOCABULARY.special_ids).any()


def test_every_position_is_chosen_equally_often():
    _, labels_BL = corrupt(rows(20_000))
    frequency_L = (labels_BL != IGNORED).mean(axis=0)[1:-1]
    expected = 19 / 126
    deviation = np.sqrt(expected * (1 - expected) / 20_000)
    assert np.abs(frequency_L - expected).max() < 4.5 * deviation


@pytest.mark.parametrize(
    ("num_candidates", "expected"), [(0, 0), (1, 1), (3, 1), (10, 2), (126, 19)]
)
def test_the_number_chosen_is_rounded_and_at_least_one(num_candidates, expected):
    candidates_BL = np.arange(126)[None, :] < num_candidates
    chosen_BL = choose_positions(candidates_BL, 0.15, step_generator(0, 0))
    assert chosen_BL.sum() == expected
    assert not (chosen_BL & ~candidates_BL).any()


def test_corruption_is_a_function_of_seed_and_position():
    ids_BL = rows(8)
    again = corrupt(ids_BL)[0]
    assert (corrupt(ids_BL)[0] == again).all()
    assert (corrupt(ids_BL, seed=1)[0] != again).any()
    a, b = step_generator(1, 2).random(4), step_generator(2, 1).random(4)
    assert (a != b).all()


def test_segments_cost_one_token_and_types_begin_after_the_separator():
    ids_BL = rows()
    split_BL, types_BL = split_segments(ids_BL, VOCABULARY, step_generator(0, 0), fraction=0.5)
    cut_B = types_BL.any(axis=1)
    assert cut_B.mean() == pytest.approx(0.5, abs=0.05)
    assert ((split_BL != ids_BL).sum(axis=1) == cut_B).all()
    first_B = types_BL.argmax(axis=1)[cut_B]
    assert (split_BL[cut_B, first_B - 1] == VOCABULARY.sep_id).all()
    assert first_B.min() > 32
    assert first_B.max() <= 96
    assert (np.diff(types_BL, axis=1) >= 0).all()


def test_padded_rows_are_not_cut():
    ids_BL = rows()
    ids_BL[:, 100:] = VOCABULARY.pad_id
    split_BL, types_BL = split_segments(ids_BL, VOCABULARY, step_generator(0, 0), fraction=1.0)
    assert (split_BL == ids_BL).all()
    assert not types_BL.any()
