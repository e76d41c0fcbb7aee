"""The sample of documents to train a tokenizer on: those with the smallest hashes.

It is a uniform sample, and does not depend on the order of the documents and the number of workers.
It never has held-out documents.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from smallbench.data.cleaning import HASH_RANGE, is_held_out, text_hash
from smallbench.data.packing import TextRules, clean_documents


def sample_chunk(
    documents: Sequence[bytes], *, rules: TextRules, bound: int
) -> list[tuple[int, bytes]]:
    """(hash, clean text) of the documents that may be in the sample: hash below `bound`."""
    sample = []
    for result in clean_documents(documents, rules):
        if len(result.text) >= rules.min_characters:
            hash_value = text_hash(result.text)
            if hash_value < bound and not is_held_out(hash_value, rules.eval_fraction):
                sample.append((hash_value, result.text.encode()))
    return sample


class TextSample:
    """Distinct texts in the order of their hashes, as many as fit into `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.num_bytes = 0
        self.bound = HASH_RANGE
        """Hashes from here on are certainly not in the sample."""
        self._limit_bytes = limit_bytes
        self._heap: list[tuple[int, bytes]] = []  # largest hash first, as its negative
        self._hashes: set[int] = set()

    def add(self, hash_value: int, text: bytes) -> None:
        """Add `text` if it belongs to the sample; texts that no longer fit are dropped."""
        if hash_value >= self.bound or hash_value in self._hashes:
            return
        heapq.heappush(self._heap, (-hash_value, text))
        self._hashes.add(hash_value)
        self.num_bytes += len(text)
        while self.num_bytes > self._limit_bytes and len(self._heap) > 1:
            negative, dropped = heapq.heappop(self._heap)
            self.num_bytes -= len(dropped)
            self._hashes.discard(-negative)
            self.bound = -negative

    def __len__(self) -> int:
        return len(self._heap)

    def items(self) -> Iterator[tuple[int, bytes]]:
        """(hash, text) in the order of the hashes."""
        for negative, text in sorted(self._heap, reverse=True):
            yield -negative, text

    def __iter__(self) -> Iterator[str]:
        for _, text in self.items():
            yield text.decode()
