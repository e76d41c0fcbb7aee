"""Checks of what a pretraining cost: operations, energy and price."""

from __future__ import annotations

import re

from smallbench.config import flatten
from smallbench.errors import ConfigError
from smallbench.gpus import gpu_of_device, gpus_of_device
from smallbench.leaderboard.finding import Found
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.log_check import BYTES_PER_PARAMETER
from smallbench.leaderboard.scores import RunScores
from smallbench.leaderboard.text import show
from smallbench.leaderboard.tracks import flops_of, logged_flops

PERCENT = 0.01
PROCESSORS = ("x86_64", "AMD64", "aarch64", "arm64")
"""Device names of a run without a GPU (`platform.machine`)."""
MAX_PROCESSOR_FLOPS = 1e15
"""Per second; more than any processor of 2025 (128 cores with AMX in bf16 have about 0.7e15)."""
HOST_WATTS = 1_000.0
"""Most of a machine beside its GPU."""
MIN_USD_PER_HOUR = 0.001
MIN_GCO2_PER_KWH = 1.0
"""Nuclear, wind and water power have 5 or more over their life cycle (UNECE 2021)."""
WATTS = (1.0, 5_000.0)
"""Of a whole machine without a GPU that the board knows."""


def compute(submission: Submission, scores: RunScores) -> Found:
    """The device can do the counted operations in the claimed time."""
    entry = submission.entry.measured
    hardware, precision = entry.hardware, entry.pretrain.precision
    if hardware.count != 1:
        yield "rejected", f"{hardware.count} GPUs; the benchmark allows one"
    try:
        counted = flops_of(entry)
    except ConfigError as error:
        yield "rejected", f"invalid sizes: {show(str(error))}"
        return
    if counted is None:
        what = f"{show(entry.model.architecture)} with objective {show(entry.model.objective)}"
        yield "not done", f"operations of {what} cannot be counted here"
    gpu, logged = gpu_of_device(hardware.gpu), logged_flops(submission.train_log)
    flops = counted or logged
    if counted and logged and abs(logged / counted - 1) > 5 * PERCENT:
        yield (
            "rejected",
            f"{logged:.3g} training FLOPs in the log, but the sizes give {counted:.3g}",
        )
    limit = flatten(entry.provenance.config).get("train.max_flops")
    if flops and isinstance(limit, int | float) and flops > limit * (1 + 5 * PERCENT):
        yield "flagged", f"{flops:.3g} training FLOPs, but train.max_flops is {limit:g}"
    if len(gpus_of_device(hardware.gpu)) > 1 or re.match(r"\d+ ?x ", hardware.gpu):
        yield "flagged", f"{show(hardware.gpu)!r} is not the name of one card"
    memory, least = hardware.memory_bytes, BYTES_PER_PARAMETER * entry.model.num_parameters
    if memory is not None and memory < least:
        yield "flagged", f"memory_bytes {memory:,}: the weights alone have {least:,}"
    if flops and hardware.gpu in PROCESSORS:
        if hardware.peak_tflops is not None:
            yield "flagged", "the peak of a processor is not known; expected null"
        if flops > entry.pretrain.gpu_active_seconds * MAX_PROCESSOR_FLOPS:
            yield "rejected", "more operations per second than any processor can do"
        return
    peak = gpu.peak_tflops.get(precision) if gpu else None
    if peak is None:
        yield "not done", f"the peak of {show(hardware.gpu)!r} in {precision} is not known"
        return
    if hardware.peak_tflops is not None and abs(hardware.peak_tflops / peak - 1) > PERCENT:
        yield "rejected", f"peak_tflops {hardware.peak_tflops:g}, but the known peak is {peak:g}"
    if flops is None:
        return
    mfu = flops / (entry.pretrain.gpu_active_seconds * peak * 1e12)
    if mfu > 1:
        yield "rejected", f"MFU {mfu:.2f}: more than the GPU can do in {precision}"
    elif not 0.01 <= mfu <= 0.65:
        yield "flagged", f"MFU {mfu:.3f}, expected 0.01 to 0.65"


def energy(submission: Submission, scores: RunScores) -> Found:
    """The energy is what the device draws over this time."""
    entry = submission.entry.measured
    kwh, method = entry.energy.kwh, entry.energy.method
    if (kwh is None) != (method is None):
        yield "rejected", f"kwh {kwh} with method {method}: expected both or neither"
    if kwh is None:
        return
    gpu = gpu_of_device(entry.hardware.gpu)
    least, most = (0.15 * gpu.tdp_watts, 1.1 * gpu.tdp_watts) if gpu else WATTS
    if method == "codecarbon":  # which measures the whole machine
        most += HOST_WATTS
    low = least * entry.pretrain.gpu_active_seconds / 3.6e6
    high = most * entry.pretrain.wall_seconds / 3.6e6
    if not low <= kwh <= high:
        yield (
            "rejected",
            f"{kwh:g} kWh, but {least:.3g} to {most:.3g} W over this time give {low:.3g} to "
            f"{high:.3g} kWh",
        )


def price(submission: Submission, scores: RunScores) -> Found:
    """A price is not zero; null is unknown."""
    entry = submission.entry.measured
    prices = {"hardware.usd_per_hour": entry.hardware.usd_per_hour, "energy.kwh": entry.energy.kwh}
    for name, value in prices.items():
        if value == 0:
            yield "rejected", f"{name} is 0; expected null if it is not known"
    carbon = entry.energy.gco2_per_kwh
    if carbon is not None and carbon < MIN_GCO2_PER_KWH:
        yield "flagged", f"energy.gco2_per_kwh {abs(carbon):g} is less than any grid's"
    if 0 < (entry.hardware.usd_per_hour or 0) < MIN_USD_PER_HOUR:
        yield (
            "rejected",
            f"hardware.usd_per_hour {entry.hardware.usd_per_hour:g} is less than "
            f"{MIN_USD_PER_HOUR:g}; expected null if it is not known",
        )
