"""Dropout whose random numbers cost little on a CPU.

PyTorch draws a CPU's Bernoulli numbers one after the other, each from 32 random bits; in a small
encoder that was half of a training step. Here one draw of 64 bits decides on four elements, and it
comes from NumPy's SFC64, twice as fast as PyTorch's generator, which only seeds it. On a GPU, and
under a compiler, PyTorch's own dropout is used.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.models.kernels.dispatch import operator, use_cpu_kernels

LEVELS = 1 << 16
"""The probability is rounded to a multiple of 1 / LEVELS, and the scale follows the rounded one."""


def dropout(values: Tensor, probability: float) -> Tensor:
    """Set random elements of `values` to zero and scale the rest to the same mean.

    Draws from PyTorch's global generator, whose state is in every checkpoint, the same numbers for
    any number of threads.
    """
    if probability == 0:
        return values
    if not use_cpu_kernels(values):
        return F.dropout(values, p=probability)
    return values * draw_scaled_mask(values, probability)


def draw_scaled_mask(values: Tensor, probability: float) -> Tensor:
    """Return the zeros and scales that a CPU multiplies `values` with, in their shape and type."""
    num_dropped = round(probability * LEVELS)
    levels = random_levels(-(-values.numel() // 4))[: values.numel()].view(values.shape)
    keep = torch.empty_like(values, memory_format=torch.contiguous_format)
    torch.ge(levels, num_dropped - LEVELS // 2, out=keep)
    return keep.mul_(LEVELS / (LEVELS - num_dropped))


def _random_levels(num_draws: int) -> Tensor:
    """Return four uniform int16 a draw, seeded by PyTorch's global generator."""
    seed = torch.randint(2**63 - 1, ()).item()
    return torch.from_numpy(np.random.SFC64(int(seed)).random_raw(num_draws).view(np.int16))


def _fake_levels(num_draws: int) -> Tensor:
    return torch.empty(4 * num_draws, dtype=torch.int16)


# An operator of its own, so that a step can be traced without drawing (planning/memory_trace.py).
random_levels = operator("random_levels", _random_levels, _fake_levels)


class Dropout(nn.Module):
    """Apply `dropout` while training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, values: Tensor) -> Tensor:
        """Values → values."""
        return dropout(values, self.probability) if self.training else values

    def extra_repr(self) -> str:
        """Return the text for `print(model)`."""
        return f"probability={self.probability}"
