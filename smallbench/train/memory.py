"""The C library's allocator, told to keep what a CPU's training step frees for the next step.

By default glibc returns every large block to the kernel and fetches it again, zeroed page by page,
some thousand times a second; that was a seventh of a BERT step, and half of transformers'.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """From now on reuse freed memory in this process; False where the C library is not glibc.

    The peak stays what it is; what is freed below it is no longer given back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) == mallopt(M_TRIM_THRESHOLD, LARGEST) == 1)
