"""Which kernels a computation takes: those for CPUs, or PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_as_on_gpu = False


def use_cpu_kernels(tensor: Tensor) -> bool:
    """Return whether `tensor` is computed with the kernels for CPUs.

    Not under a compiler, and not if the CPU stands for a GPU.
    """
    return is_on_cpu(tensor) and not torch.compiler.is_compiling()


def is_on_cpu(tensor: Tensor) -> bool:
    """Return whether `tensor` is on the CPU, and not there only in place of a GPU."""
    return tensor.device.type == "cpu" and not _as_on_gpu


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take a GPU's kernels on the CPU, to plan for a GPU that is not there."""
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before
