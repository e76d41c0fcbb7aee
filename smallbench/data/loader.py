"""An endless shuffled stream over rows that can start anywhere at no cost.

Every epoch is a fresh permutation of all rows. The permutation is computed, not stored: a keyed
Feistel network is a bijection on 0 … 2^k - 1, and walking on until the value is below N makes it
one on 0 … N - 1 (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). So memory
and the cost of seeking do not depend on N, and the only state is the position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smallbench.data.shards import TokenRows

_NUM_ROUNDS = 12  # Luby and Rackoff need 4; more, because halves of few bits mix slowly


def permuted(
    positions: NDArray[np.int64], *, length: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Where a permutation of 0 … `length` - 1, keyed by `seed` and `epoch`, puts `positions`."""
    num_bits = max(2, (length - 1).bit_length())
    low_bits = np.uint64(num_bits // 2)
    low_mask = np.uint64((1 << (num_bits // 2)) - 1)
    high_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_NUM_ROUNDS, np.uint64)

    def walk(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = values & low_mask, values >> low_bits
        for round_key in range(0, _NUM_ROUNDS, 2):
            low = low ^ (_mix(high ^ keys[round_key]) & low_mask)
            high = high ^ (_mix(low ^ keys[round_key + 1]) & high_mask)
        return (high << low_bits) | low

    values = walk(positions.astype(np.uint64))
    # The domain is less than twice the length (or 4), so few values walk on, and not for long.
    while (outside := values >= length).any():
        values[outside] = walk(values[outside])
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits: each depends on all bits of `values` (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ShuffledRows:
    """Samples 0, 1, 2, … of the endless stream over `rows`; equal for equal rows and `seed`."""

    def __init__(self, rows: TokenRows, *, seed: int) -> None:
        self.rows = rows
        self.seed = seed

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return which rows the samples `start` … `start + count - 1` are, [count]."""
        length = len(self.rows)
        samples = np.arange(start, start + count, dtype=np.int64)
        parts = [
            permuted(samples[samples // length == epoch] % length, length=length,
                     seed=self.seed, epoch=epoch)
            for epoch in range(start // length, (start + count - 1) // length + 1)
        ]  # fmt: skip
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Samples `start` … `start + count - 1` as token ids, [count, L]."""
        return self.rows.take(self.indices(start, count))
