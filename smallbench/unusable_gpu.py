"""An NVIDIA card that PyTorch cannot use: the reason, and the command that installs what can."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from smallbench.errors import reason_of

INDEX = "https://download.pytorch.org/whl"
DEVICES = Path("/dev")
"""Where the driver puts `nvidia0` and further cards."""
WSL_DEVICE = "dxg"
"""The card of a Windows host, in WSL."""


@dataclass(frozen=True)
class Card:
    """What `nvidia-smi` says of a card."""

    name: str
    driver: str
    capability: tuple[int, int] | None


def wheels_for(capability: tuple[int, int] | None) -> str:
    """Return the index of the PyTorch wheels for a card.

    CUDA 12.6's are the last with kernels for Volta and older, and need the oldest driver; they have
    none for Blackwell (TORCH_CUDA_ARCH_LIST of PyTorch's .ci/manywheel/build_cuda.sh).
    """
    return f"{INDEX}/cu130" if capability and capability >= (10, 0) else f"{INDEX}/cu126"


def oldest_driver(capability: tuple[int, int] | None) -> int:
    """Return the major version of the driver that those wheels need.

    By minor-version compatibility (CUDA Compatibility, table 1): 525 for CUDA 12, 580 for CUDA 13.
    """
    return 580 if wheels_for(capability).endswith("cu130") else 525


def install_command(capability: tuple[int, int] | None) -> str:
    """Return what a user types to get a PyTorch that can use the card."""
    return f"make TORCH_INDEX_URL={wheels_for(capability)}"


def cards() -> tuple[list[Card], str | None]:
    """Return the cards that `nvidia-smi` lists, or none and what it said instead."""
    if shutil.which("nvidia-smi") is None:
        return [], "nvidia-smi is not installed"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    said = " ".join((done.stdout + " " + done.stderr).split())
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
    if done.returncode or not rows or any(len(row) != 3 for row in rows):
        return [], f"nvidia-smi: {said or f'exit code {done.returncode}'}"
    return [Card(name, driver, _capability(text)) for name, driver, text in rows], None


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def is_hidden() -> bool:
    """Return whether the user hides all cards from this process, which is a choice of the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in {"", "-1"}


def unusable_card() -> str | None:
    """Return why the NVIDIA card of this machine cannot be used, and the remedy; None without one.

    Only for a process in which `torch.cuda.is_available()` is false.
    """
    files = [path for pattern in ("nvidia[0-9]*", WSL_DEVICE) for path in DEVICES.glob(pattern)]
    found, problem = cards()
    # A container may have the program without a card, and a machine the module without its program.
    if is_hidden() or not (found or files):
        return None
    if not found:
        return (
            f"This machine has an NVIDIA device ({files[0]}), but its driver does not work "
            f"({problem}). Install or restart the driver, or start the container with '--gpus all'"
        )
    card = found[0]
    major = card.driver.partition(".")[0]
    oldest = oldest_driver(card.capability)
    is_old = major.isdigit() and int(major) < oldest
    driver = f"Update the driver to {oldest} or newer, then install" if is_old else "Install"
    return (
        f"This machine has an NVIDIA card ({card.name}, driver {card.driver}), but torch cannot "
        f"use it: {_torch_reason()}. {driver} a build for it: {install_command(card.capability)}"
    )


def _torch_reason() -> str:
    import torch

    version = torch.__version__
    if torch.version.cuda is None:
        return f"the installed torch {version} is built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # torch's own words: the driver is too old, …
        return f"torch {version} for CUDA {torch.version.cuda} says '{reason_of(error)}'"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"torch {version} finds no device (CUDA_VISIBLE_DEVICES={visible!r})"
