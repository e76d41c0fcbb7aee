"""The GPUs that a plan, an energy estimate or a leaderboard row may name; no torch here.

Peaks are dense matrix products with float32 sums, as PyTorch runs them: no sparsity, and fp32
without TF32. Sources are the vendors' data sheets and whitepapers, one beside each row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from smallbench.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One model of a card."""

    name: str
    pattern: str
    """Regular expression that the driver's name of the device matches, without case."""
    memory_bytes: int
    """What the driver offers: cards with GDDR and ECC keep a sixteenth of theirs for it."""
    capability: tuple[int, int]
    """CUDA compute capability."""
    peak_tflops: Mapping[str, float]
    """By precision; without an entry the card has no hardware for it."""
    tdp_watts: float
    bandwidth: float
    """Bytes a second between the card and its memory."""

    @property
    def link_bandwidth(self) -> float:
        """Bytes a second to the host, one way: PCIe 3, 4 or 5 with 16 lanes, by generation."""
        return {6: 16e9, 7: 16e9, 8: 32e9}.get(self.capability[0], 64e9)

    @property
    def default_precision(self) -> str:
        """What `train.precision=auto` chooses on it."""
        return "bf16" if self.capability >= (8, 0) else "fp16"

    def peak_flops(self, precision: str) -> float:
        """Return FLOP/s; raise `ConfigError` if the GPU cannot compute in that precision."""
        if precision not in self.peak_tflops:
            raise ConfigError(
                f"{self.name} has no {precision}; use {', '.join(sorted(self.peak_tflops))} or auto"
            )
        return 1e12 * self.peak_tflops[precision]


def _gpu(
    name: str, pattern: str, gib: float, capability: tuple[int, int], tdp_watts: float,
    *, gb_per_second: float, fp32: float, fp16: float,
) -> Gpu:  # fmt: skip
    """Return a row. From Ampere on (capability 8.0), bf16 has the peak of fp16."""
    peaks = {"fp32": fp32, "fp16": fp16} | ({"bf16": fp16} if capability >= (8, 0) else {})
    return Gpu(name, pattern, round(gib * GIB), capability, peaks, tdp_watts, 1e9 * gb_per_second)


# fmt: off
_ROWS = [
    # NVIDIA Tesla P100 data sheet (NVLink and PCIe), 2016: no tensor cores.
    _gpu("p100-16gb", r"P100-SXM2-16GB", 16, (6, 0), 300, gb_per_second=732, fp32=10.6, fp16=21.2),
    _gpu("p100-pcie-16gb", r"P100-PCIE-16GB", 16, (6, 0), 250,
         gb_per_second=732, fp32=9.3, fp16=18.7),
    # NVIDIA V100 data sheet, January 2020.
    _gpu("v100-16gb", r"V100-SXM2-16GB", 16, (7, 0), 300, gb_per_second=900, fp32=15.7, fp16=125),
    _gpu("v100-32gb", r"V100-SXM[23]-32GB", 32, (7, 0), 300,
         gb_per_second=900, fp32=15.7, fp16=125),
    _gpu("v100-pcie-16gb", r"V100-PCIE-16GB", 16, (7, 0), 250,
         gb_per_second=900, fp32=14.0, fp16=112),
    _gpu("v100-pcie-32gb", r"V100-PCIE-32GB", 32, (7, 0), 250,
         gb_per_second=900, fp32=14.0, fp16=112),
    # NVIDIA T4 data sheet, 2019; ECC takes a sixteenth of 16 GB.
    _gpu("t4-16gb", r"\bT4\b", 15, (7, 5), 70, gb_per_second=320, fp32=8.1, fp16=65),
    # NVIDIA Turing architecture whitepaper, appendix A, reference card.
    _gpu("rtx-2080ti", r"RTX 2080 Ti", 11, (7, 5), 250, gb_per_second=616, fp32=13.4, fp16=53.8),
    _gpu("rtx-2080-8gb", r"RTX 2080(?! (Ti|SUPER))", 8, (7, 5), 215,
         gb_per_second=448, fp32=10.1, fp16=40.3),
    # NVIDIA Ampere GA102 architecture whitepaper v2, table 9.
    _gpu("rtx-3090", r"RTX 3090(?! Ti)", 24, (8, 6), 350, gb_per_second=936, fp32=35.6, fp16=71),
    _gpu("rtx-3070-8gb", r"RTX 3070(?! Ti)", 8, (8, 6), 220,
         gb_per_second=448, fp32=20.3, fp16=40.6),
    # NVIDIA RTX A4000 data sheet: 153.4 TFLOPS with sparsity; ECC is off as delivered.
    _gpu("rtx-a4000-16gb", r"RTX A4000", 16, (8, 6), 140, gb_per_second=448, fp32=19.2, fp16=76.7),
    # NVIDIA Ada GPU architecture whitepaper v2.1, appendices A to C.
    _gpu("rtx-4090", r"RTX 4090(?! D)", 24, (8, 9), 450, gb_per_second=1008, fp32=82.6, fp16=165.2),
    _gpu("rtx-4080-16gb", r"RTX 4080(?! SUPER)", 16, (8, 9), 320,
         gb_per_second=717, fp32=48.7, fp16=97.5),
    # The same for AD106 at 2.535 GHz; 165 W is the card with 16 GB.
    _gpu("rtx-4060ti-16gb", r"RTX 4060 Ti", 16, (8, 9), 165,
         gb_per_second=288, fp32=22.1, fp16=44.1),
    # With 8 GB it has the same name for the driver, so only `--gpu` finds this row.
    _gpu("rtx-4060ti-8gb", r"(?!)", 8, (8, 9), 160, gb_per_second=288, fp32=22.1, fp16=44.1),
    # AD107: 3,072 cores at 2.46 GHz, with the ratios of the cards above.
    _gpu("rtx-4060-8gb", r"RTX 4060(?! Ti)", 8, (8, 9), 115,
         gb_per_second=272, fp32=15.1, fp16=30.2),
    # NVIDIA A10 data sheet, 2021; ECC takes a sixteenth of 24 GB.
    _gpu("a10-24gb", r"\bA10\b", 22.5, (8, 6), 150, gb_per_second=600, fp32=31.2, fp16=125),
    # NVIDIA L4 data sheet, 2023: 242 TFLOPS with sparsity; ECC takes a sixteenth of 24 GB.
    _gpu("l4-24gb", r"\bL4\b", 22.5, (8, 9), 72, gb_per_second=300, fp32=30.3, fp16=121),
    # NVIDIA A100 data sheet, June 2021.
    _gpu("a100-40gb", r"A100-SXM4-40GB", 40, (8, 0), 400, gb_per_second=1555, fp32=19.5, fp16=312),
    _gpu("a100-80gb", r"A100-SXM4-80GB", 80, (8, 0), 400, gb_per_second=2039, fp32=19.5, fp16=312),
    _gpu("a100-pcie-40gb", r"A100-PCIE-40GB", 40, (8, 0), 250,
         gb_per_second=1555, fp32=19.5, fp16=312),
    _gpu("a100-pcie-80gb", r"A100 80GB PCIe", 80, (8, 0), 300,
         gb_per_second=1935, fp32=19.5, fp16=312),
    # NVIDIA H100 data sheet, 2023: 1,979 (SXM) and 1,513 (PCIe) TFLOPS with sparsity.
    _gpu("h100-80gb", r"H100 80GB HBM3", 80, (9, 0), 700, gb_per_second=3350, fp32=67, fp16=989.5),
    _gpu("h100-pcie-80gb", r"H100 PCIe", 80, (9, 0), 350, gb_per_second=2000, fp32=51, fp16=756.5),
    # NVIDIA H200 data sheet, 2024: 141 GB, given in powers of ten.
    _gpu("h200", r"\bH200\b", 141e9 / GIB, (9, 0), 700, gb_per_second=4800, fp32=67, fp16=989.5),
]
# fmt: on

GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _ROWS}
"""By the name that `--gpu` takes."""


def gpu_of(name: str) -> Gpu:
    """Return the row of a name, ignoring case and dashes; raise `ConfigError` with similar ones."""
    wanted = _plain(name)
    known = {_plain(gpu): gpu for gpu in GPUS}
    if wanted in known:
        return GPUS[known[wanted]]
    if gpu := gpu_of_device(name):
        return gpu
    near = [gpu for plain, gpu in known.items() if wanted and wanted in plain]
    if not near and re.search(r"\d", wanted):  # a card of another number is not a near one
        close = get_close_matches(wanted, known, cutoff=0.9)
        near = [known[plain] for plain in close if _digits(plain).startswith(_digits(wanted))]
    if near:
        raise ConfigError(f"Unknown GPU {name!r}; did you mean {' or '.join(near)}?")
    raise ConfigError(f"Unknown GPU {name!r}; expected one of: {', '.join(GPUS)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _digits(name: str) -> str:
    return re.sub(r"\D", "", name)


def gpu_of_device(device_name: str) -> Gpu | None:
    """The row of `torch.cuda.get_device_name()`, or None for a card that has none."""
    return next(iter(gpus_of_device(device_name)), None)


def gpus_of_device(device_name: str) -> list[Gpu]:
    """Return all rows that a name matches; a driver's name matches at most one."""
    return [gpu for gpu in _ROWS if re.search(gpu.pattern, device_name, re.IGNORECASE)]
