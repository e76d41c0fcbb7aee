"""The estimate of a step's time (`planning.step_time`) against real steps of this processor.

    python -m benchmarks.step_time [--recipes=bert-tiny,bert-small] [--batch_size=32] [--threads=1]

The estimate needs a device's peak and bandwidth: both are measured here, and the traced step's work
is set against the profiler's times of a real one. The shares say what a step reaches of the peak in
its matrix products, and of the bandwidth in all other kernels; those that plans assume for a card
are `MATRIX_SHARE` and `BANDWIDTH_SHARE`. A processor has caches and no launches beside its work,
so what carries over is how well counted work predicts time, not the shares themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.systems import SYSTEMS, config_of, ours
from smallbench.planning.memory_trace import tracer_of
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot")
"""Beginnings of the names of kernels that `Work.products` counts."""
COPIED = 1 << 28


@dataclass(frozen=True)
class Row:
    """Seconds of a step: its counted work at the whole peak and bandwidth, and measured."""

    at_peak: float
    at_bandwidth: float
    products: float
    other: float

    @property
    def shares(self) -> tuple[float, float]:
        """Reached of the peak and of the bandwidth."""
        return self.at_peak / self.products, self.at_bandwidth / self.other


def bandwidth(rounds: int = 7) -> float:
    """Bytes a second of a copy that no cache holds, read and written; the fastest of `rounds`."""
    source, target = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * COPIED / (time.perf_counter() - start))
    return best


def measured(recipe: str, batch_size: int, precision: str, rounds: int) -> tuple[float, float]:
    """Median seconds of a step's matrix products, and of all else that it does."""
    step = ours(recipe, batch_size=batch_size, precision=precision, device=torch.device("cpu")).step
    for _ in range(3):
        step()
    products, rest = [], []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        times = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
        products.append(sum(t for key, t in times.items() if key.startswith(PRODUCTS)))
        rest.append(sum(times.values()) - products[-1])
    return statistics.median(products), statistics.median(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [f"{system}-{size}" for size in ("tiny", "small") for system in SYSTEMS]
    parser.add_argument("--recipes", default=",".join(every))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    peak, moved = matrix_peak_flops(device, precision), bandwidth()
    print(f"batch {arguments.batch_size} x 128, {arguments.threads} threads, {precision}: "
          f"{peak / 1e9:,.0f} GFLOP/s, {moved / 1e9:.1f} GB/s")  # fmt: skip
    rows = {}
    for recipe in arguments.recipes.split(","):
        tracer = tracer_of(
            config_of(recipe), device_type="cpu", precision=precision, offloaded=False
        )
        traced = tracer.step(arguments.batch_size, accumulates=False, checkpoint=False)
        work = traced.micro, traced.update
        # As `step_time` counts, at the whole peak and bandwidth.
        products = 0.0
        for one in work:
            for (flops, size), count in one.products.items():
                products += count * max(flops / peak, size / moved)
        other = sum(one.moved_bytes for one in work) / moved
        rows[recipe] = Row(
            products, other, *measured(recipe, arguments.batch_size, precision, arguments.rounds)
        )
    shares = [statistics.median(row.shares[i] for row in rows.values()) for i in (0, 1)]
    print("| recipe | step | products | of the peak | other | of the bandwidth | counted / step |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    results = {}
    for recipe, row in rows.items():
        counted = row.at_peak / shares[0] + row.at_bandwidth / shares[1]
        ratio = counted / (row.products + row.other)
        print(f"| {recipe} | {1e3 * (row.products + row.other):,.0f} ms | "
              f"{1e3 * row.products:,.0f} ms | {row.shares[0]:.2f} | {1e3 * row.other:,.0f} ms | "
              f"{row.shares[1]:.2f} | {ratio:.2f} |")  # fmt: skip
        results[recipe] = {**asdict(row), "ratio": ratio}
    print(f"medians: {shares[0]:.2f} of the peak, {shares[1]:.2f} of the bandwidth; the last "
          "column has the counted work at these")  # fmt: skip
    print(json.dumps({"benchmark": "step_time", "peak": peak, "bandwidth": moved,
                      "results": results}))  # fmt: skip


if __name__ == "__main__":
    main()
