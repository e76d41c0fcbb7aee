"""Skipped parts of a corpus, and notes for the user."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

_NUM_NAMED = 100


class UnreadableError(Exception):
    """A file or an archive member that has no usable text; the message is the reason."""


class DamagedFileError(UnreadableError):
    """The content is of a known format, but damaged."""


@dataclass
class Skips:
    """Skipped files: the count, the first names with their reasons, and notes on the text.

    A note is about text that was read but may not be as intended: a guessed encoding, a large file
    with a single document.
    """

    count: int = 0
    named: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object, count: int = 1) -> None:
        """Count `count` unreadable members, lines or rows of `name`."""
        self.extend(Skips(count, [f"{printable(name)}: {reason}"]))

    def note(self, name: str, text: str) -> None:
        """Remember `text` about `name`, which was read."""
        self.extend(Skips(notes=[f"{printable(name)}: {text}"]))

    def extend(self, others: Skips) -> None:
        """Add later skips from another place."""
        self.count += others.count
        _extend(self.named, others.named)
        _extend(self.notes, others.notes)


def _extend(names: list[str], more: Iterable[str]) -> None:
    names += list(more)[: _NUM_NAMED - len(names)]


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a file name as valid Unicode: bytes that are not UTF-8 become ``\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
