"""The tracks of the board: a table of the entries that each ranking admits.

Each is a tab of the site. An entry does not declare a track: its protocol, GPU, peak memory, FLOPs
in its log and parameters decide (`tracks.tracks_of`). A new row adds a track. No numpy here: the
help of `smallbench enter` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smallbench.gpus import GIB


@dataclass(frozen=True)
class Track:
    """Limits of a ranking; None: no limit."""

    name: str
    title: str
    page: str
    protocol: str
    max_memory_bytes: int | None = None
    """Memory of the GPU, by its name, and peak memory in the log."""
    max_parameters: int | None = None
    max_train_flops: float | None = None
    """FLOPs of the pretraining, by the model's own count."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks over which AVG is the mean."""
        from smallbench.glue.protocols import PROTOCOLS

        return PROTOCOLS[self.protocol].tasks

    @property
    def rule(self) -> str:
        """The limits in a sentence."""
        parts = ["any hardware"]
        if self.max_memory_bytes:
            parts = [f"one card of at most {self.max_memory_bytes / GIB:.0f} GB"]
        if self.max_parameters:
            parts.append(f"at most {self.max_parameters / 1e6:.0f}M parameters")
        if self.max_train_flops:
            parts.append(f"at most {self.max_train_flops:.0e} training FLOPs".replace("e+", "e"))
        return ", ".join(parts)


TRACKS: Mapping[str, Track] = {
    track.name: track
    for track in (
        # Kanakarajan et al. 2021 used one V100 of 16 GB. 30M and 6e18 FLOPs are our choice.
        Track("small", "One 16 GB card", "index.html", "robust-v1", 16 * GIB, 30_000_000, 6e18),
        # About half an hour of two CPU cores; the number is our choice.
        Track("tiny", "Two CPU cores", "tiny.html", "tiny-v1", max_train_flops=2e14),
        Track("any", "Any hardware", "any.html", "robust-v1"),
    )
}
"""Name to track, in the order of the tabs; the first is the board's front page."""
