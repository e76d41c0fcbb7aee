"""Whether a computation is for a CPU, where the models have ways of their own for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_as_on_gpu = False


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether `tensor` is on the CPU, and not there only in place of a GPU."""
    return tensor.device.type == "cpu" and not _as_on_gpu


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take a GPU's ways on the CPU, to plan for a GPU that is not there."""
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before
