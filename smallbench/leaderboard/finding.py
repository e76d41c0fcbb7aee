"""What a check says."""

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
