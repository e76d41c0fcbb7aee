"""Choose between kernels for CPUs and PyTorch's own; register operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

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


def operator(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Return the operator `smallbench::NAME`, registered by the first call of a process.

    An export with code has copies of these files. To register a name a second time would free the
    operator that the first module calls, so copies use that one; an operator that computes
    something else needs another name.
    """
    if (found := getattr(torch.ops.smallbench, name, None)) is not None:
        return cast(Callable[..., Any], found)
    made = torch.library.custom_op(f"smallbench::{name}", function, mutates_args=())
    made.register_fake(fake)
    if backward is not None:
        made.register_autograd(backward, setup_context=setup_context)
    return made
