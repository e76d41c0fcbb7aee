"""Choose between kernels for CPUs and PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_as_on_gpu = False


def use_cpu_kernels(tensor: Tensor) -> bool:
    """Return whether `tensor` is computed with the kernels for CPUs.

    False under a compiler, and if the CPU stands for a GPU.
    """
    return is_on_cpu(tensor) and not torch.compiler.is_compiling()


def is_on_cpu(tensor: Tensor) -> bool:
    """Return whether `tensor` is on the CPU, which does not stand for a GPU."""
    return tensor.device.type == "cpu" and not _as_on_gpu


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Use a GPU's kernels on the CPU, to plan for a GPU that is not available."""
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before
