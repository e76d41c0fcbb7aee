"""Findings of checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "flagged", "not done", "rejected"]


@dataclass(frozen=True)
class Finding:
    """The verdict of one check, and its reason."""

    check: str
    verdict: Verdict
    reason: str = ""


Found = Iterator[tuple[Verdict, str]]
"""Findings of a check; an empty one is a pass."""


class Rejected(ValueError):  # noqa: N818 - a verdict, not a fault of ours
    """The folder cannot be an entry; `check` is the name of the failed check."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check
        self.reason = reason
