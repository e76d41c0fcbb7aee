"""What a run uses up besides steps: seconds of GPUs, energy and money, over all its attempts.

All of it is in every checkpoint and survives preemptions. (What an attempt did after its last
checkpoint is lost with it, here as everywhere.) None means unknown, never zero: NVML's counter,
say, reads zero on cards before Volta and on virtual GPUs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch

from smallbench.errors import UnavailableError
from smallbench.gpus import gpu_of_device
from smallbench.train.budget import Progress
from smallbench.train.processes import Processes

Method = Literal["auto", "nvml", "codecarbon", "tdp", "none"]

JOULES_PER_KWH = 3.6e6


class EnergyMeter(Protocol):
    """What this attempt has used, by one method."""

    method: str

    def kwh(self, gpu_seconds: float) -> float:
        """Since the meter was made; `gpu_seconds` of the GPUs were spent in steps since then."""
        ...


class NvmlMeter:
    """The cards' own counters, which NVIDIA has from Volta on."""

    method = "nvml"

    def __init__(self, handles: list[Any]) -> None:
        """Raises `UnavailableError` where a card has no counter, or one that reads zero."""
        self._handles = handles
        self._start = self._read()

    def _read(self) -> float:
        import pynvml

        try:
            joules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1000 for h in self._handles]
        except pynvml.NVMLError as error:
            raise UnavailableError(f"this GPU counts no energy ({error})") from None
        if not all(joules):
            raise UnavailableError("this GPU's energy counter reads zero")
        return float(sum(joules))

    def kwh(self, gpu_seconds: float) -> float:
        """What the counters have risen by."""
        return (self._read() - self._start) / JOULES_PER_KWH


class TdpMeter:
    """An estimate: the cards' thermal design power for as long as they computed."""

    method = "tdp"

    def __init__(self, watts: float) -> None:
        self._watts = watts

    def kwh(self, gpu_seconds: float) -> float:
        """Power × seconds of one card."""
        return self._watts * gpu_seconds / JOULES_PER_KWH


class CodecarbonMeter:
    """codecarbon's measurement or model of the whole machine: GPU, CPU and memory."""

    method = "codecarbon"

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        # The country sets the emissions alone, which are not used; offline it asks no server.
        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA", output_methods=[], log_level="critical"
        )
        self._tracker.start()

    def kwh(self, gpu_seconds: float) -> float:
        """What it has added up."""
        self._tracker.flush()
        return float(self._tracker._total_energy.kWh)


def open_meter(method: Method, device: torch.device, num_devices: int) -> EnergyMeter | None:
    """The best meter there is for `auto`, the one that was asked for else; None measures nothing.

    Raises `UnavailableError` where the one asked for is not to be had.
    """
    if method == "none":
        return None
    makers: dict[str, Callable[[], EnergyMeter]] = {
        "nvml": lambda: NvmlMeter(_nvml_handles(device, num_devices)),
        "tdp": lambda: TdpMeter(_tdp_watts(device)),
        "codecarbon": _codecarbon,
    }
    if method != "auto":
        return makers[method]()
    # Not codecarbon unasked: it takes seconds to begin, and counts more than the GPU.
    for name in ("nvml", "tdp"):
        try:
            return makers[name]()
        except UnavailableError:
            continue
    return None


def _nvml_handles(device: torch.device, num_devices: int) -> list[Any]:
    """Of the GPUs of this run, found by their place on the bus: CUDA counts otherwise than NVML."""
    if device.type != "cuda":
        raise UnavailableError("energy nvml is a GPU's, and this run has none; leave --energy out")
    try:
        import pynvml

        pynvml.nvmlInit()
        indices = range(num_devices) if num_devices > 1 else [device.index or 0]
        places = [_bus_place(torch.cuda.get_device_properties(index)) for index in indices]
        return [pynvml.nvmlDeviceGetHandleByPciBusId(place) for place in places]
    except ImportError:
        raise UnavailableError(
            "energy nvml needs the package nvidia-ml-py; pip install 'smallbench[energy]'"
        ) from None
    except pynvml.NVMLError as error:
        raise UnavailableError(f"NVML does not answer ({error}); leave --energy out") from None


def _bus_place(properties: Any) -> str:
    p = properties
    return f"{p.pci_domain_id:08x}:{p.pci_bus_id:02x}:{p.pci_device_id:02x}.0"


def _codecarbon() -> EnergyMeter:
    try:
        return CodecarbonMeter()
    except ImportError:
        raise UnavailableError(
            "energy codecarbon needs the package codecarbon; pip install 'smallbench[energy]'"
        ) from None


def _tdp_watts(device: torch.device) -> float:
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        raise UnavailableError("the thermal design power of this device is not known")
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
    """Adds up `Progress.usage` when asked, not at each step: counters may take longer than one."""

    def __init__(
        self,
        progress: Progress,
        meter: EnergyMeter | None,
        *,
        device: torch.device,
        processes: Processes,
        price_per_hour: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter, self._clock = meter, clock
        self._has_gpu, self._num_devices = device.type == "cuda", processes.size
        self._price_per_hour = price_per_hour
        self._before = {**NOTHING, **progress.usage}
        self._start, self._train_seconds = clock(), progress.train_seconds
        methods = {*filter(None, self._before["energy_method"].split(" + "))}
        methods |= {meter.method if meter else "unknown"}
        self._method = " + ".join(sorted(methods))

    def update(self, progress: Progress) -> dict[str, Any]:
        """Bring `progress.usage` up to date; also what it holds."""
        wall_seconds = self._clock() - self._start
        gpu_seconds = (progress.train_seconds - self._train_seconds) * self._num_devices
        kwh = self._meter.kwh(gpu_seconds) if self._meter else None
        price = self._price_per_hour
        progress.usage = {
            "wall_seconds": self._before["wall_seconds"] + wall_seconds,
            "gpu_active_seconds": self._sum(
                "gpu_active_seconds", gpu_seconds if self._has_gpu else None
            ),
            "energy_kwh": self._sum("energy_kwh", kwh),
            "energy_method": self._method,
            "cost": self._sum("cost", None if price is None else price * wall_seconds / 3600),
        }
        return progress.usage

    def _sum(self, name: str, value: float | None) -> float | None:
        """Unknown in one attempt is unknown in all: a part of a sum says nothing of it."""
        before = self._before[name]
        return None if before is None or value is None else before + value


def summary(progress: Progress, *, peak_flops: float) -> dict[str, Any]:
    """What a run has come to, for `run.json`, the model card and the leaderboard."""
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
