"""The memory of a device: how much there is and was used, what it means that it ran out, and the
CPU's allocator.

By default glibc returns every large freed block to the kernel, and the next step fetches zeroed
pages again; that was a seventh of a BERT step, and half of transformers'.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from smallbench.errors import UnavailableError, reason_of

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Reuse freed memory in this process; return False if the C library is not glibc.

    The peak does not change, but freed memory is no longer returned to the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) == mallopt(M_TRIM_THRESHOLD, LARGEST) == 1)


class MemoryExhaustedError(UnavailableError):
    """A step did not fit into the device's memory.

    `is_undone`: the step has changed nothing; an interrupted update may have.
    """

    def __init__(self, reason: str, *, is_undone: bool) -> None:
        self.reason, self.is_undone = reason, is_undone
        super().__init__(
            f"out of memory ({reason}); set a smaller --train.micro_batch_size, or --batch_size in "
            "fine-tuning"
        )


OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    # A library's handle or workspace: cuBLAS, cuBLASLt, cuDNN, cuSOLVER, cuSPARSE.
    "_STATUS_ALLOC_FAILED",
    # On the host: PyTorch's allocator, and oneDNN's code generator.
    "DefaultCPUAllocator",
    "could not create a primitive",
)
"""Texts of a failed allocation in errors that have no class of their own."""

CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, the `error_code` of an `AcceleratorError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):  # `AcceleratorError` is one
        return False
    is_code = getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
    return is_code or any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def exhaustion_raised(undo: Callable[[], None] | None) -> Iterator[None]:
    """Raise `MemoryExhaustedError` if the block runs out of memory, after `undo` if it can be."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if undo is not None:
            undo()
        raise MemoryExhaustedError(reason_of(error), is_undone=undo is not None) from None


class PeakMeter:
    """The most memory that a run has had on a device since this was made (before its model)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.is_host = device.type == "cpu"
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # from here on VmHWM counts anew (proc(5))
                Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """On a CPU, of the whole process; 0 where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, _status_bytes("VmHWM") - self._before)


def memory_bytes_of(device: torch.device) -> int:
    """What a GPU has; 0 for a CPU, whose memory is the host's."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def _status_bytes(field: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
