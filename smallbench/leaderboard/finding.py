"""Findings of checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "flagged", "not done", "rejected"]


@dataclass(frozen=True)
class Finding:
    """The verdict of one check, and why."""

    check: str
    verdict: Verdict
    reason: str = ""


Found = Iterator[tuple[Verdict, str]]
"""What a check yields; nothing is a pass."""


class Rejected(ValueError):  # noqa: N818 - a verdict, not a fault of ours
    """The folder cannot be an entry; `check` names the check that found it."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check
        self.reason = reason
