"""The statistics and the determinism of corruption."""

import numpy as np
import pytest

from smallbench.batch import IGNORED
from smallbench.objectives.masking import (
    Vocabulary,
    choose_positions,
    is_special,
    mask_tokens,
    relate_segments,
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


def related(ids_BL, fraction=0.5, seed=0):
    return relate_segments(ids_BL, VOCABULARY, step_generator(seed, 0), fraction=fraction)


def test_related_segments_keep_the_first_segment_and_end_with_separators():
    ids_BL = rows()
    before = ids_BL.copy()
    related_BL, types_BL, relations_B2 = related(ids_BL)
    assert (ids_BL == before).all(), "the clean rows are not written to"
    chosen_B = np.isfinite(relations_B2).all(axis=1)
    assert chosen_B.sum() == 1000, "half of 2,000 rows, exactly"
    assert (related_BL[~chosen_B] == ids_BL[~chosen_B]).all()
    assert not types_BL[~chosen_B].any()
    begin_B = types_BL[chosen_B].argmax(axis=1)
    for row, clean, begin in zip(related_BL[chosen_B], ids_BL[chosen_B], begin_B, strict=True):
        assert (row[: begin - 1] == clean[: begin - 1]).all()
        assert row[begin - 1] == row[-1] == VOCABULARY.sep_id
        assert not np.isin(row[begin:-1], VOCABULARY.special_ids).any()
    assert (np.diff(types_BL, axis=1) >= 0).all()


def test_the_overlap_is_the_share_of_information_that_the_first_segment_has_too():
    ids_BL = rows(50)
    related_BL, types_BL, relations_B2 = related(ids_BL, fraction=1.0)
    counts = np.bincount(ids_BL.ravel(), minlength=VOCABULARY.size)
    for row, types, (overlap, _) in zip(related_BL, types_BL, relations_B2, strict=True):
        begin = types.argmax()
        first, second = set(row[1 : begin - 1]), row[begin:-1]
        bits = -np.log(np.maximum(counts[second], 1) / ids_BL.size)
        shared = [token in first for token in second]
        assert overlap == pytest.approx((bits * shared).sum() / bits.sum(), abs=1e-5)
    assert relations_B2[:, 0].min() < 0.2
    assert relations_B2[:, 0].max() > 0.8


def test_what_is_not_copied_is_the_rows_own_text_or_the_row_befores():
    ids_BL = rows()
    related_BL, types_BL, relations_B2 = related(ids_BL, fraction=1.0)
    is_own_B = relations_B2[:, 1] == 1
    assert is_own_B.mean() == pytest.approx(0.5, abs=0.05)
    for index in range(100):
        begin = types_BL[index].argmax()
        other = ids_BL[index if is_own_B[index] else index - 1]
        known = set(ids_BL[index, 1 : begin - 1]) | set(other[begin:-1])
        assert set(related_BL[index, begin:-1]) <= known


def test_padded_rows_have_no_related_segments():
    ids_BL = rows()
    ids_BL[::2, 100:] = VOCABULARY.pad_id
    related_BL, _, relations_B2 = related(ids_BL, fraction=1.0)
    assert np.isnan(relations_B2[::2]).all()
    assert (related_BL[::2] == ids_BL[::2]).all()
    assert np.isfinite(relations_B2[1::2]).all()
    assert VOCABULARY.pad_id not in related_BL[1::2, :100]
