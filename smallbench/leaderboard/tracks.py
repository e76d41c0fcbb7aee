"""Which tracks admit an entry, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smallbench.config import flatten
from smallbench.errors import ConfigError
from smallbench.glue.protocols import PROTOCOLS, Protocol
from smallbench.gpus import GIB, gpu_of_device
from smallbench.leaderboard.compute import count_parameters, encoder_config, train_flops
from smallbench.leaderboard.entry import FLOPS_KEY, PEAK_KEY, Entry, Finetune, MeasuredSections
from smallbench.leaderboard.track_table import TRACKS, Track
from smallbench.models.config import EncoderConfig

Log = Sequence[Mapping[str, Any]]


def protocol_of(finetune: Finetune) -> Protocol | None:
    """Return the protocol of the tracks that may admit the entry; None: it is not ranked."""
    found = PROTOCOLS.get(finetune.protocol)
    return found if found is not None and found.chooses_rate else None


def tracks_of(entry: Entry, log: Log) -> dict[str, tuple[str, ...]]:
    """Return each track with the reasons why it does not admit the entry; empty if it does."""
    if not entry.is_measured:
        return dict.fromkeys(TRACKS, (f"tier {entry.tier} is not ranked",))
    return {name: tuple(_departures(track, entry.measured, log)) for name, track in TRACKS.items()}


def _departures(track: Track, entry: MeasuredSections, log: Log) -> Iterator[str]:
    if entry.finetune.protocol != track.protocol:
        yield f"protocol {entry.finetune.protocol}, but the track has {track.protocol}"
        return
    most = track.max_memory_bytes
    if most is not None:
        gpu, has = gpu_of_device(entry.hardware.gpu), entry.hardware.memory_bytes
        if gpu is None:
            yield f"the memory of card {entry.hardware.gpu!r} is not known"
        for what, size in (
            (f"{gpu.name} has" if gpu else "", gpu.memory_bytes if gpu else 0),
            ("the card has", has or 0),
            ("the log has a peak of", highest(log, PEAK_KEY) or 0),
        ):
            if size > most:
                yield f"{what} {size / GIB:.1f} GB, but the limit is {most / GIB:.0f}"
    num_counted, flops_counted = _counts(entry)
    num = max(entry.model.num_parameters, num_counted)
    if track.max_parameters is not None and num > track.max_parameters:
        yield f"{num:,} parameters, but the limit is {track.max_parameters:,}"
    if track.max_train_flops is not None:
        if not entry.model.from_scratch or entry.model.distilled_from is not None:
            yield "not trained from scratch on text alone, so not all of its FLOPs are counted"
        # Both the count from the sizes and the trainer's, because either alone could be invented.
        known = [count for count in (flops_counted, logged_flops(log)) if count is not None]
        if not known:
            yield "its training FLOPs cannot be counted here and are not in its log"
        elif max(known) > track.max_train_flops:
            yield f"{max(known):.3g} training FLOPs, but the limit is {track.max_train_flops:.2g}"


def _counts(entry: MeasuredSections) -> tuple[int, float | None]:
    """Return the parameters and FLOPs that the sizes give; 0 and None if these are invalid."""
    try:
        encoder = encoder_of(entry)
        return count_parameters(encoder).total if encoder else 0, flops_of(entry)
    except ConfigError:  # checks reject them
        return 0, None


def highest(log: Log, key: str) -> float | None:
    """Return the highest value of a key in a log; None if no line has it."""
    return max((line[key] for line in log if line.get(key)), default=None)


def logged_flops(log: Log) -> float | None:
    """Return the trainer's count at the end of a log; None if the last line has none."""
    return highest(log, FLOPS_KEY) if log and log[-1].get(FLOPS_KEY) else None


def encoder_of(entry: Entry | MeasuredSections) -> EncoderConfig | None:
    """Return an entry's encoder; None if it cannot be counted here (`compute.encoder_config`)."""
    settings = entry.provenance.config.get("model") if entry.provenance else None
    return encoder_config(entry.model, settings if isinstance(settings, dict) else {})


def flops_of(entry: MeasuredSections) -> float | None:
    """Return the training FLOPs from an entry's sizes; None if they cannot be counted here.

    Raises `ConfigError` for sizes that no encoder or generator has.
    """
    flat = flatten(entry.provenance.config)
    first = _fraction(flat.get("objective.mask_fraction"), 0.15)
    last = _fraction(flat.get("objective.final_mask_fraction"), first)  # linear in between
    related = _fraction(flat.get("objective.related_fraction"), 0.0)
    of_related = _fraction(flat.get("objective.related_mask_fraction"), 0.15)
    encoder = encoder_of(entry)
    if encoder is None:
        return None
    return train_flops(
        encoder,
        entry.pretrain.stages,
        objective=entry.model.objective,
        mask_fraction=(1 - related) * (first + last) / 2 + related * of_related,
        generator_width=_fraction(flat.get("objective.generator_width"), 0.25),
    )


def _fraction(value: Any, default: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= 1 else default
