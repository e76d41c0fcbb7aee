"""Kernels that add in the same order each time, so that a resumed run is exact on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Within the block, let PyTorch take deterministic kernels only; do nothing if not `is_on`.

    Must be entered before the first product on a GPU: cuBLAS reads its variable once.
    """
    if not is_on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings, cuda = torch.utils.deterministic, torch.backends.cuda
    before = (
        torch.are_deterministic_algorithms_enabled(),
        settings.fill_uninitialized_memory,  # type: ignore[attr-defined]
        cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
    )
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging
    # The flash and the memory-efficient kernel obey the setting; cuDNN's promises nothing.
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        cuda.enable_cudnn_sdp(before[2])
