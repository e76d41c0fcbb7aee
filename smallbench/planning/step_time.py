"""How long a step takes on a card, from what it computes: an estimate with a fast and a slow end.

The traced step (`planning.memory_trace`) gives the matrix products by size, the bytes that all
other kernels move, and the number of kernels. A card computes while the host starts the next
kernels, so the longer of the two counts. What goes to the host and back (ZeRO-Offload) comes on
top.

Each assumption is a pair, the fast end first. They are no measurement of a card: `smallbench plan
--measured` replaces the estimate by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallbench.gpus import Gpu
from smallbench.planning.memory_trace import StepMemory, Work

Pair = tuple[float, float]
"""A fast and a slow end."""

MATRIX_SHARE: Pair = (0.55, 0.3)
"""Of the published peak, for products that do not wait for memory. Hidden sizes from 256 to 1,024
make few tiles for many multiprocessors, and attention reaches less than a plain product."""
BANDWIDTH_SHARE: Pair = (0.8, 0.45)
"""Of the published bandwidth; norms, dropout and reductions reach less than a copy."""
LAUNCH_SECONDS: Pair = (6e-6, 20e-6)
"""Of the host for one operator, forward, backward and optimizer: PyTorch's dispatcher and Python.
An assumption, like the others here: nothing was measured on a GPU."""
LINK_SHARE: Pair = (0.8, 0.3)
"""Of PCIe's bandwidth: pinned memory, and pageable memory."""
HOST_BANDWIDTH: Pair = (100e9, 20e9)
"""Bytes a second that CPU Adam moves: many cores with eight channels of memory, or few with two."""
ADAM_BYTES = 4 * (4 + 3)
"""A parameter's float32 weight, gradient and two moments are read, all but the gradient written."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, each part with its fast and its slow end."""

    matrix_products: Pair
    other_kernels: Pair
    launches: Pair
    """Of the host, which works while the card does."""
    host: Pair
    """Copies to the host and back, and CPU Adam."""
    num_kernels: int

    @property
    def seconds(self) -> Pair:
        """The whole step."""
        fast, slow = (
            max(self.matrix_products[end] + self.other_kernels[end], self.launches[end])
            + self.host[end]
            for end in (0, 1)
        )
        return fast, slow


def step_time(
    step: StepMemory, gpu: Gpu, precision: str, *, num_micro_batches: int, host_bytes: Pair
) -> StepTime:
    """Return the time of a traced step on `gpu`.

    `host_bytes` go over the link for each micro-batch, and are moved by CPU Adam once a step.
    """
    parts = [(step.micro, num_micro_batches), (step.update, 1)]
    num_kernels = sum(count * work.num_kernels for work, count in parts)
    per_batch, adam = host_bytes

    def at(end: int) -> tuple[float, float, float, float]:
        flops_per_second = MATRIX_SHARE[end] * gpu.peak_flops(precision)
        bandwidth = BANDWIDTH_SHARE[end] * gpu.bandwidth

        def products(work: Work) -> float:
            return sum(
                count * max(flops / flops_per_second, moved / bandwidth)
                for (flops, moved), count in work.products.items()
            )

        link = LINK_SHARE[end] * gpu.link_bandwidth
        return (
            sum(count * products(work) for work, count in parts),
            sum(count * work.moved_bytes for work, count in parts) / bandwidth,
            num_kernels * LAUNCH_SECONDS[end],
            num_micro_batches * per_batch / link + adam / HOST_BANDWIDTH[end],
        )

    matrix, other, launches, host = zip(at(0), at(1), strict=True)
    return StepTime(matrix, other, launches, host, num_kernels)
