"""The tracks of the board: what a ranking admits, as a table. Each is a tab of the site.

An entry declares no track: its card, the peak memory in its log, its parameters, its training FLOPs
and its protocol decide. A further track is a further row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smallbench.config import flatten
from smallbench.glue.protocols import DEFAULT
from smallbench.glue.tasks import TASKS
from smallbench.gpus import GIB, gpu_of_device
from smallbench.leaderboard.compute import Sizes, train_flops
from smallbench.leaderboard.entry import Entry, Measured


@dataclass(frozen=True)
class Track:
    """What a ranking admits; None is no limit."""

    name: str
    title: str
    page: str
    tasks: tuple[str, ...]
    protocol: str
    max_memory_bytes: int | None = None
    """Of the card, by its name, and of the run, by the peak in its log."""
    max_parameters: int | None = None
    max_train_flops: float | None = None
    """By the model's own count (`compute.train_flops`)."""

    @property
    def rule(self) -> str:
        """The limits in a sentence."""
        parts = []
        if self.max_memory_bytes:
            parts.append(f"one card of at most {self.max_memory_bytes / GIB:.0f} GB")
        else:
            parts.append("one card of any kind")
        if self.max_parameters:
            parts.append(f"at most {self.max_parameters / 1e6:.0f}M parameters")
        if self.max_train_flops:
            parts.append(f"at most {self.max_train_flops:.0e} training FLOPs".replace("e+", "e"))
        return ", ".join(parts)


_ALL = tuple(TASKS)
TRACKS: Mapping[str, Track] = {
    track.name: track
    for track in (
        # Kanakarajan et al. 2021 used one V100 of 16 GB. 30M and 6e18 FLOPs are our choice.
        Track("small", "One 16 GB card", "index.html", _ALL, DEFAULT, 16 * GIB, 30_000_000, 6e18),
        Track("any", "Any hardware", "any.html", _ALL, DEFAULT),
    )
}
"""Name to track, in the order of the tabs; the first is the board's front page."""


def tracks_of(entry: Entry, log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Track to the reasons why the entry is not in it; empty: it is."""
    if entry.reported is not None:
        return dict.fromkeys(TRACKS, ("reported scores are not ranked",))
    measured = entry.measured
    peak = max((line.get("peak_memory_bytes") or 0 for line in log), default=0)
    return {name: tuple(_departures(track, measured, peak)) for name, track in TRACKS.items()}


def _departures(track: Track, entry: Measured, peak: int) -> Iterator[str]:
    gpu, most = gpu_of_device(entry.hardware.gpu), track.max_memory_bytes
    if most is not None:
        if gpu is None:
            yield f"the memory of card {entry.hardware.gpu!r} is not known"
        elif gpu.memory_bytes > most:
            yield f"{gpu.name} has {gpu.memory_bytes / GIB:.1f} GB, the track {most / GIB:.0f}"
        has = entry.hardware.memory_bytes
        if has is not None and has > most:
            yield f"the card has {has / GIB:.1f} GB, the track {most / GIB:.0f}"
        if peak > most:
            yield f"the log has a peak of {peak / GIB:.1f} GB, the track {most / GIB:.0f}"
    if track.max_parameters is not None and entry.model.num_parameters > track.max_parameters:
        yield f"{entry.model.num_parameters:,} parameters, the track {track.max_parameters:,}"
    if track.max_train_flops is not None:
        flops = flops_of(entry)
        if flops is None:
            yield f"the FLOPs of architecture {entry.model.architecture!r} are not counted"
        elif flops > track.max_train_flops:
            yield f"{flops:.2g} training FLOPs, the track {track.max_train_flops:.2g}"


def sizes_of(entry: Measured) -> Sizes | None:
    """Return the sizes of an entry's model; None if its architecture cannot be counted."""
    span = flatten(entry.provenance.config).get("model.max_relative_positions")
    return Sizes.of(
        entry.model, max_relative_positions=span if isinstance(span, int) and span > 0 else None
    )


def flops_of(entry: Measured) -> float | None:
    """Return the training FLOPs by the model's own count; None if they cannot be counted."""
    sizes = sizes_of(entry)
    if sizes is None:
        return None
    flat = flatten(entry.provenance.config)
    return train_flops(
        sizes,
        entry.pretrain.stages,
        objective=entry.model.objective,
        mask_fraction=_fraction(flat.get("objective.mask_fraction"), 0.15),
        generator_width=_fraction(flat.get("objective.generator_width"), 0.25),
    )


def _fraction(value: Any, default: float) -> float:
    """A configured fraction, or the default if it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= 1 else default
