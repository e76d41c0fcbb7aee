"""GPU seconds, energy and money that a run uses, summed over all its attempts.

Every checkpoint has the sums, so they survive preemptions. None means unknown, never zero: NVML's
counter, for example, reads zero on cards before Volta and on virtual GPUs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from smallbench.errors import UnavailableError
from smallbench.gpus import gpu_of_device
from smallbench.train.budget import Progress

JOULES_PER_KWH = 3.6e6
NEEDS_EXTRA = "--energy={0} requires the package {1}; pip install 'smallbench[energy]'"


@dataclass(frozen=True)
class EnergyMeter:
    """Counts the energy since it was made, by one method."""

    method: str
    kwh: Callable[[float], float]
    """kWh so far, given the seconds that the GPUs spent in steps."""


def nvml_meter(handles: list[Any]) -> EnergyMeter:
    """Return the cards' own counters, which NVIDIA has since Volta.

    Raises `UnavailableError` if a card has no counter, or one that reads zero.
    """
    import pynvml

    def read() -> float:
        try:
            joules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1000 for h in handles]
        except pynvml.NVMLError as error:
            raise UnavailableError(f"this GPU has no energy counter ({error})") from None
        if not all(joules):
            raise UnavailableError("this GPU's energy counter reads zero")
        return float(sum(joules))

    start = read()
    return EnergyMeter("nvml", lambda gpu_seconds: (read() - start) / JOULES_PER_KWH)


def tdp_meter(watts: float) -> EnergyMeter:
    """Return an estimate: the thermal design power of a card for as long as it computes."""
    return EnergyMeter("tdp", lambda gpu_seconds: watts * gpu_seconds / JOULES_PER_KWH)


def codecarbon_meter() -> EnergyMeter:
    """Return codecarbon's measurement or model of the whole machine: GPU, CPU and memory."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        raise UnavailableError(NEEDS_EXTRA.format("codecarbon", "codecarbon")) from None
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    # The country only sets the emissions, which are not used; offline it asks no server.
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA", output_methods=[], log_level="critical"
    )
    tracker.start()

    def kwh(gpu_seconds: float) -> float:
        tracker.flush()
        return float(tracker._total_energy.kWh)

    return EnergyMeter("codecarbon", kwh)


def open_meter(method: str, device: torch.device, num_devices: int) -> EnergyMeter | None:
    """Return the meter of `method`, for `auto` the best available one; None measures nothing.

    Raises `UnavailableError` if the requested one is not available.
    """
    makers: dict[str, Callable[[], EnergyMeter]] = {
        "nvml": lambda: nvml_meter(_nvml_handles(device, num_devices)),
        "tdp": lambda: tdp_meter(_tdp_watts(device)),
        "codecarbon": codecarbon_meter,
    }
    if method in makers:
        return makers[method]()
    # Not codecarbon unasked: it takes seconds to start, and counts more than the GPU.
    for name in ("nvml", "tdp") if method == "auto" else ():
        try:
            return makers[name]()
        except UnavailableError:
            continue
    return None


def _nvml_handles(device: torch.device, num_devices: int) -> list[Any]:
    """Find the GPUs of this run by their PCI address: CUDA numbers them otherwise than NVML."""
    if device.type != "cuda":
        raise UnavailableError("--energy=nvml requires a CUDA device; leave --energy out")
    try:
        import pynvml

        pynvml.nvmlInit()
        indices = range(num_devices) if num_devices > 1 else [device.index or 0]
        found: list[Any] = [torch.cuda.get_device_properties(index) for index in indices]
        addresses = [
            f"{p.pci_domain_id:08x}:{p.pci_bus_id:02x}:{p.pci_device_id:02x}.0" for p in found
        ]
        return [pynvml.nvmlDeviceGetHandleByPciBusId(address) for address in addresses]
    except ImportError:
        raise UnavailableError(NEEDS_EXTRA.format("nvml", "nvidia-ml-py")) from None
    except pynvml.NVMLError as error:
        raise UnavailableError(f"NVML does not answer ({error}); leave --energy out") from None


def _tdp_watts(device: torch.device) -> float:
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        raise UnavailableError(
            "--energy=tdp requires a GPU whose thermal design power is known; leave --energy out"
        )
    return gpu.tdp_watts


NOTHING: Mapping[str, Any] = {
    "wall_seconds": 0.0,
    "gpu_active_seconds": 0.0,
    "energy_kwh": 0.0,
    "energy_method": "",
    "cost": 0.0,
}
"""A run's usage before its first attempt."""


class UsageMeter:
    """Updates `Progress.usage` when asked, not at each step: counters may take longer than one."""

    def __init__(
        self,
        progress: Progress,
        meter: EnergyMeter | None,
        *,
        device: torch.device,
        num_devices: int,
        price_per_hour: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter, self._clock = meter, clock
        self._has_gpu, self._num_devices = device.type == "cuda", num_devices
        self._price_per_hour = price_per_hour
        self._before = {**NOTHING, **progress.usage}
        self._start, self._train_seconds = clock(), progress.train_seconds
        methods = {*filter(None, self._before["energy_method"].split(" + "))}
        self._method = " + ".join(sorted(methods | {meter.method if meter else "unknown"}))

    def update(self, progress: Progress) -> dict[str, Any]:
        """Update and return `progress.usage`."""
        wall_seconds = self._clock() - self._start
        gpu_seconds = (progress.train_seconds - self._train_seconds) * self._num_devices
        price = self._price_per_hour
        used = {
            "wall_seconds": wall_seconds,
            "gpu_active_seconds": gpu_seconds if self._has_gpu else None,
            "energy_kwh": self._meter.kwh(gpu_seconds) if self._meter else None,
            "cost": None if price is None else price * wall_seconds / 3600,
        }
        sums = {name: _sum(self._before[name], value) for name, value in used.items()}
        progress.usage = sums | {"energy_method": self._method}
        return progress.usage


def _sum(before: float | None, value: float | None) -> float | None:
    """Unknown in one attempt is unknown in all: a part of a sum says nothing about it."""
    return None if before is None or value is None else before + value


def summary(progress: Progress, *, peak_flops: float) -> dict[str, Any]:
    """Return the totals of a run, for `run.json`, the model card and the leaderboard."""
    seconds = progress.train_seconds
    return {
        "steps": progress.step,
        "tokens": progress.num_tokens,
        "train_seconds": seconds,
        "train_flops": progress.train_flops,
        "tokens_per_second": progress.num_tokens / seconds if seconds else None,
        "mfu": progress.train_flops / seconds / peak_flops if seconds else None,
        "peak_flops": peak_flops,
        "skipped_steps": progress.num_skipped_steps,
        **progress.usage,
    }
