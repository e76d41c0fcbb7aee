from __future__ import annotations

import numpy as np
import pytest

from smallbench.data.loader import ShuffledRows, permuted


class FakeRows:
    """Rows whose every token is their own number."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def take(self, indices: np.ndarray) -> np.ndarray:
        return np.repeat(indices[:, None], 4, axis=1)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 64, 65, 1000, 70_001])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_epoch_is_a_permutation(length: int, seed: int):
    stream = ShuffledRows(FakeRows(length), seed=seed)  # type: ignore[arg-type]
    epochs = [stream.indices(epoch * length, length) for epoch in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(length))
    if length >= 64:
        assert not np.array_equal(epochs[0], epochs[1])


def test_seeking_equals_iterating():
    stream = ShuffledRows(FakeRows(103), seed=7)  # type: ignore[arg-type]
    one_by_one = np.concatenate([stream.take(k, 1) for k in range(500)])
    for start, count in [(0, 500), (0, 0), (99, 10), (103, 103), (250, 240), (499, 1)]:
        assert np.array_equal(stream.take(start, count), one_by_one[start : start + count])


def test_other_seeds_and_epochs_give_other_orders():
    orders = [
        permuted(np.arange(1000), length=1000, seed=seed, epoch=epoch).tobytes()
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("length", [5, 16, 30])
def test_every_row_is_equally_likely_at_every_position(length: int):
    counts = np.zeros((length, length))
    num_orders = 2000
    for seed in range(num_orders):
        order = permuted(np.arange(length), length=length, seed=seed, epoch=0)
        counts[np.arange(length), order] += 1
    expected = num_orders / length
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [4096, 50_000, 1_000_003])
def test_neighbours_and_positions_do_not_correlate(length: int):
    order = permuted(np.arange(length), length=length, seed=3, epoch=1)
    limit = 4 / np.sqrt(length)
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < limit
    assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < limit


def test_order_is_frozen():
    """A change here makes every stored run continue with other data."""
    assert permuted(np.arange(10), length=10, seed=1, epoch=0).tolist() == [
        6, 3, 9, 7, 2, 8, 5, 1, 4, 0
    ]  # fmt: skip
