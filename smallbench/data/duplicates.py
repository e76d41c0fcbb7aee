"""Exact duplicates over a whole corpus, at 8 bytes a document."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


class SeenHashes:
    """The set of hashes so far: one large sorted array, and a small one that is merged at times."""

    def __init__(self, hashes: Hashes) -> None:
        self._large: Hashes = np.sort(hashes)
        self._small: Hashes = np.empty(0, dtype=np.uint64)

    def add(self, hashes_D: Hashes) -> NDArray[np.bool_]:
        """Return which of `hashes_D` are new, in order; from then on they are all seen."""
        is_new_D = np.zeros(len(hashes_D), dtype=np.bool_)
        is_new_D[np.unique(hashes_D, return_index=True)[1]] = True
        is_new_D &= ~_contains(self._large, hashes_D) & ~_contains(self._small, hashes_D)
        self._small = np.union1d(self._small, hashes_D[is_new_D])
        # A share of the large one, so that a hash is moved a few times only, however many come.
        if len(self._small) > 1 << 16 and len(self._small) > len(self._large) // 16:
            self._large = np.insert(
                self._large, np.searchsorted(self._large, self._small), self._small
            )
            self._small = self._small[:0]
        return is_new_D


def _contains(ordered: Hashes, values: Hashes) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)
