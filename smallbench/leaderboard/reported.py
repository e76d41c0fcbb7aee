"""The paper's leaderboard: rows of tier *reported*, with what is known about them.

Source: Kanakarajan, Kundumani, Sankarasubbu 2021, *Small-Bench NLP*, arXiv 2109.10847: dev scores
as its leaderboard prints them. They cannot be recomputed: no predictions were published. The
parameters are from the names of the first two rows and from the descriptions of the models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files


@dataclass(frozen=True)
class ReportedRow:
    """One published row; `scores` are × 100, in the order and units of the paper's table."""

    name: str
    architecture: str
    objective: str
    params_millions: float
    scores: Mapping[str, float]
    """Task name to score; empty for a reference with an AVG only."""
    average: float
    notes: tuple[str, ...]


_ROWS = json.loads(package_files(__package__).joinpath("reported.json").read_text(encoding="utf-8"))
REPORTED = tuple(ReportedRow(**{**row, "notes": tuple(row["notes"])}) for row in _ROWS)
