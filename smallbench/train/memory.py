"""Out-of-memory errors, and the CPU's allocator.

By default glibc returns every large freed block to the kernel, and the next step fetches zeroed
pages again; that was a seventh of a BERT step, and half of transformers'.
"""

from __future__ import annotations

import ctypes

import torch

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


class MemoryExhaustedError(Exception):
    """A step did not fit into the device's memory.

    `is_undone`: the step has changed nothing; an interrupted update may have.
    """

    def __init__(self, message: str, *, is_undone: bool) -> None:
        super().__init__(message)
        self.is_undone = is_undone


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Host allocators do not have an error class: PyTorch's, and oneDNN's code generator.
    words = ("DefaultCPUAllocator", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
