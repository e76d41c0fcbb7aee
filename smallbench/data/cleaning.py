"""One raw document → one clean text, its hash, and the side of the split that it falls on.

Pure functions: what they return depends on the document alone, so any number of workers in any
order gives the same corpus. `SeenHashes` finds exact duplicates over all of it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# C0 and C1 controls but those that are white space to `str.split` (tab, newline, vertical tab, form
# feed, return, the four information separators, NEL); and the byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")

HASH_RANGE = 1 << 64

Hashes = NDArray[np.uint64]


class CleanText(NamedTuple):
    """A clean text, and the repairs that it needed."""

    text: str
    decode_errors: int
    control_characters: int


def clean(raw: bytes) -> CleanText:
    """UTF-8 bytes → NFC text of one paragraph a line.

    Undecodable bytes become U+FFFD, control characters go, runs of white space become one space,
    and blank lines go. Cleaning a clean text changes nothing.
    """
    decode_errors = 0
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="replace")
        decode_errors = text.count("\ufffd") - raw.count("\ufffd".encode())
    text, control_characters = _CONTROL.subn("", text)
    # After the controls: one of them may stand between a letter and its combining accent.
    text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return CleanText("\n".join(filter(None, lines)), decode_errors, control_characters)


def text_hash(text: str) -> int:
    """64 bits that name a text; two of 10 million texts collide with a chance of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(hash_value: int, eval_fraction: float) -> bool:
    """Return whether a text is held out for evaluation: those with the largest hashes are."""
    return hash_value >= int((1.0 - eval_fraction) * HASH_RANGE)


class SeenHashes:
    """The set of hashes so far, at 8 bytes a document.

    One large sorted array, and a small one that is merged at times.
    """

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
