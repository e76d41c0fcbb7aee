"""Which device and number format to train with, and how fast that device multiplies matrices."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from smallbench.errors import ConfigError, UnavailableError
from smallbench.unusable_gpu import install_command, unusable_card

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_FLAGS = "--train.device=cpu (pretrain, quickstart) or --device=cpu (other commands)"


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises `UnavailableError` when a device is asked for that this machine does not have, and for
    `auto` if there is an NVIDIA card that torch cannot use; `ConfigError` for an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and (reason := unusable_card()):
            raise UnavailableError(f"{reason}; or {CPU_FLAGS} to train on the CPU")
    if name not in {"cpu", "cuda"}:
        raise ConfigError(
            f"unsupported device {name!r}; expected auto, cpu or cuda (CUDA_VISIBLE_DEVICES "
            "picks one)"
        )
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            reason = unusable_card() or _no_gpu()
            raise UnavailableError(f"device 'cuda' is not available: {reason}; or use {CPU_FLAGS}")
        assert_compiled_for(device)
    return device


def _no_gpu() -> str:
    found = "torch finds no GPU"
    if torch.version.cuda is None:
        return (
            f"{found}, since torch {torch.__version__} is built without CUDA; install a build "
            f"with CUDA: {install_command(None)}"
        )
    return f"{found}; in a container, start it with 'docker run --gpus all'"


def assert_compiled_for(device: torch.device) -> None:
    """Fail at the start, not at the first kernel, where torch was built without this GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    # A binary for x.y runs on every x.z with z ≥ y; PTX (compute_) runs on anything newer.
    runs = any(
        (kind == "sm" and int(number[:-1]) == major and int(number[-1]) <= minor)
        or (kind == "compute" and (int(number[:-1]), int(number[-1])) <= (major, minor))
        for kind, number in (a.rstrip("af").split("_") for a in architectures)
    )
    if not runs:
        raise UnavailableError(
            f"this torch ({torch.__version__}) is built for {', '.join(architectures)}, not for "
            f"sm_{major}{minor}; install a build that has it (the V100 needs CUDA 12.6 wheels): "
            f"{install_command((major, minor))}; or {CPU_FLAGS}"
        )


def require_compiler(device: torch.device) -> None:
    """Raise `UnavailableError` where `torch.compile` would find nothing to compile with."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UnavailableError(
            "train.compile needs Triton on a GPU, and it is not installed; install triton, or "
            "leave train.compile out"
        )
    # Triton compiles what launches its kernels.
    variable, usual = (
        ("CC", ["gcc", "clang"]) if device.type == "cuda" else ("CXX", ["g++", "clang++"])
    )
    names = [os.environ[variable]] if variable in os.environ else usual
    if not any(shutil.which(name) for name in names):
        raise UnavailableError(
            f"train.compile needs a compiler, but {' and '.join(names)} cannot be found; "
            f"install {usual[0]}, or leave train.compile out"
        )


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets that the CPU reports; empty where /proc does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def has_fast_bf16(device: torch.device) -> bool:
    """True where bf16 matrix products run in hardware.

    On CUDA the capability decides: `torch.cuda.is_bf16_supported()` also counts emulation.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` → `bf16` where the hardware has it, `fp16` on older GPUs, else `fp32`.

    Raises `ConfigError` for fp16 on a CPU (unusably slow), for bf16 on a GPU that emulates it, and
    for unknown names. Warns once of bf16 on a CPU that emulates it.
    """
    if name == "auto":
        if has_fast_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise ConfigError(f"unsupported precision {name!r}; expected auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 is unusably slow on a CPU; use auto, bf16 or fp32")
    if name == "bf16" and device.type == "cuda" and not has_fast_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}) has no bf16 units and would "
            "emulate them; use auto, fp16 or fp32"
        )
    if name == "bf16" and device.type == "cpu" and cpu_flags() and not has_fast_bf16(device):
        _warn_of_emulated_bf16()
    return name


@cache
def _warn_of_emulated_bf16() -> None:
    print(
        "precision bf16: this CPU has no bf16 instructions and emulates them, which can be 50 "
        "times slower than fp32; 'auto', the default, is fp32 here",
        file=sys.stderr,
        flush=True,
    )


def autocast(device_type: str, precision: str) -> AbstractContextManager[Any]:
    """Return a context that casts to bf16 or fp16; none for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=DTYPES[precision])


def matrix_peak_flops(device: torch.device, precision: str, *, seconds: float = 0.2) -> float:
    """The best matrix-product rate, in FLOP/s, measured on this device now.

    The yardstick for MFU where no published peak applies: a large product in the precision that
    training uses, the fastest of many short rounds (others may share the machine).
    """
    size = 8192 if device.type == "cuda" else 1024 if torch.get_num_threads() <= 4 else 2048
    # A generator of its own: dropout's must not notice that somebody measured.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(DTYPES[precision])
    b = torch.randn(size, size, device=device, generator=generator).to(DTYPES[precision])
    best, end = 0.0, time.perf_counter() + seconds
    torch.mm(a, b)
    while time.perf_counter() < end or not best:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
