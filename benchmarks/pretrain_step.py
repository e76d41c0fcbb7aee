"""The pretraining step of each system: ours against its peer, alternating, as ratios.

    python -m benchmarks.pretrain_step [--systems=bert,electra-tiny] [--rounds=5] [--steps=5]
                                       [--threads=2]

A system is the paper's recipe, and a recipe's name is that recipe; one of our own has no peer.
Peers are described in `benchmarks/systems.py`. transformers' DeBERTa raises under bf16 autocast on
a CPU, so it runs in float32 and ours in both. Each program has a process of its own, waiting while
another steps, so that each has the allocator and the peak memory that it has alone: our engine
tells glibc to keep freed memory, a plain training script does not. `--tuned_peer` tells it the
peer's process too. In each round a program does one step that is not counted, and then `--steps`
steps, one after another as in training: the first after a wait finds cold caches. A row is the
median of all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch

from benchmarks.systems import SYSTEMS, family_of, ours, theirs
from smallbench.train.memory import keep_freed_memory
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops

Name = tuple[str, str]
"""Who, and in which precision."""


def pairs(system: str, precision: str) -> list[Name]:
    """The programs that are compared; the peer last, where there is one."""
    family = family_of(system)
    if family not in SYSTEMS:
        return [("ours", precision)]
    if family == "deberta":
        return [("ours", precision), ("ours", "fp32"), ("theirs", "fp32")]
    if family == "electra-deberta":
        return [("ours", precision), ("theirs", "fp32")]
    return [("ours", precision), ("theirs", precision)]


def work(
    link: Connection, name: Name, system: str, batch_size: int, threads: int, *, compiled: bool,
    tuned: bool,
) -> None:  # fmt: skip
    """A program's process: seconds of as many steps as a message asks for; at 0 peak memory."""
    torch.set_num_threads(threads)
    who, precision = name
    device = torch.device("cpu")
    if who == "ours":
        program = ours(
            system, batch_size=batch_size, precision=precision, device=device, compile=compiled
        )
    else:
        if tuned:
            keep_freed_memory()
        program = theirs(system, batch_size=batch_size, precision=precision, device=device)
    link.send((program.tokens_per_step, program.flops_per_step))
    while count := link.recv():
        program.step()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            program.step()
            seconds.append(time.perf_counter() - start)
        link.send(seconds)
    link.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Worker:
    """The other end of `work`."""

    def __init__(self, name: Name, system: str, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.process = context.Process(
            target=work,
            args=(other, name, system, arguments.batch_size, arguments.threads),
            kwargs={"compiled": arguments.compile, "tuned": arguments.tuned_peer},
        )
        self.process.start()
        self.tokens_per_step, self.flops_per_step = self.link.recv()
        self.seconds: list[float] = []

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps, after one that is not counted."""
        self.link.send(count)
        seconds: list[float] = self.link.recv()
        return seconds

    def end(self) -> int:
        """Peak resident bytes."""
        self.link.send(0)
        peak_bytes: int = self.link.recv()
        self.process.join()
        return peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a program in a round")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--tuned_peer", action="store_true", help="our allocator settings for both")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    results = {}
    print(f"batch {arguments.batch_size} x 128, {arguments.threads} threads, {precision}; medians "
          f"of {arguments.steps} steps in each of {arguments.rounds} rounds, in turn")  # fmt: skip
    print("| system | program | tokens/s | MFU | peak memory | ours / peer |")
    print("|---|---|--:|--:|--:|--:|")
    for system in arguments.systems.split(","):
        workers = {name: Worker(name, system, arguments) for name in pairs(system, precision)}
        peaks = []
        for worker in workers.values():
            worker.steps(1)  # warm-up
        for _ in range(arguments.rounds):
            for worker in workers.values():
                worker.seconds += worker.steps(arguments.steps)
            peaks.append(matrix_peak_flops(device, precision))
        peak = statistics.median(peaks)
        peer = statistics.median(list(workers.values())[-1].seconds)
        for name, worker in workers.items():
            median = statistics.median(worker.seconds)
            row = {
                "tokens_per_second": round(worker.tokens_per_step / median),
                "mfu": round(worker.flops_per_step / median / peak, 4),
                "peak_bytes": worker.end(),
                "ratio": round(peer / median, 2) if len(workers) > 1 else None,
            }
            results[f"{system}/{name[0]}-{name[1]}"] = row
            print(f"| {system} | {name[0]} {name[1]} | {row['tokens_per_second']:,} | "
                  f"{row['mfu']:.1%} | {row['peak_bytes'] / 2**20:,.0f} MiB | "
                  f"{row['ratio'] or '–'} |", flush=True)  # fmt: skip
        print(f"| | measured {precision} matrix peak: {peak / 1e9:,.0f} GFLOP/s | | | | |")
    print(json.dumps({"benchmark": "pretrain_step", "batch_size": arguments.batch_size,
                      "threads": arguments.threads, "rounds": arguments.rounds,
                      "steps": arguments.steps,
                      "compiled": arguments.compile, "tuned_peer": arguments.tuned_peer,
                      "results": results}))  # fmt: skip


if __name__ == "__main__":
    main()
