"""Entries that somebody has tampered with: how each is made, and what must be said of it.

The base is a good entry of tier *logged*; some cases have another one, `original`, beside it. Each
module registers its cases in `CORPUS`.
"""

from tests.leaderboard.tampered import (
    entry_file,
    files,
    finetuning,
    pretraining,
    texts,
    tiers,
)
from tests.leaderboard.tampered.base import CORPUS, write_corpus

__all__ = [
    "CORPUS",
    "entry_file",
    "files",
    "finetuning",
    "pretraining",
    "texts",
    "tiers",
    "write_corpus",
]
