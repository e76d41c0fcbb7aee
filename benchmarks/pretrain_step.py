"""The pretraining step of each system: ours against its peer, alternating, as ratios.

    python -m benchmarks.pretrain_step [--systems=bert,electra] [--rounds=5] [--threads=2]

Peers are described in `benchmarks/systems.py`. transformers' DeBERTa raises under bf16 autocast on
a CPU, so it runs in float32 and ours in both. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.systems import SYSTEMS, Program, ours, theirs
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops


def pairs(system: str, precision: str) -> list[tuple[str, str]]:
    """(who, precision) of the programs that are compared; the peer last."""
    if system == "deberta":
        return [("ours", precision), ("ours", "fp32"), ("theirs", "fp32")]
    if system == "electra-deberta":
        return [("ours", precision), ("theirs", "fp32")]
    return [("ours", precision), ("theirs", precision)]


def build(who: str, system: str, precision: str, batch_size: int) -> Program:
    program = {"ours": ours, "theirs": theirs}[who]
    return program(system, batch_size=batch_size, precision=precision, device=torch.device("cpu"))


def peak_bytes(who: str, system: str, precision: str, batch_size: int) -> int:
    """Peak resident memory of a process that does two steps and nothing else."""
    command = [sys.executable, "-m", "benchmarks.pretrain_step", "--memory_of",
               f"{who},{system},{precision}", f"--batch_size={batch_size}"]  # fmt: skip
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        program = build(*arguments.memory_of.split(","), arguments.batch_size)
        program.step(), program.step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    results = {}
    print(f"batch {arguments.batch_size} x 128, {arguments.threads} threads, {precision}; medians "
          f"of {arguments.rounds} alternating rounds")  # fmt: skip
    print("| system | program | tokens/s | MFU | peak memory | ours / peer |")
    print("|---|---|--:|--:|--:|--:|")
    for system in arguments.systems.split(","):
        names = pairs(system, precision)
        programs = {name: build(*_arguments(name, system, arguments)) for name in names}
        seconds: dict[tuple[str, str], list[float]] = {name: [] for name in names}
        peaks = []
        for name in names:
            programs[name].step()  # warm-up
        for _ in range(arguments.rounds):
            for name in names:
                begin = time.perf_counter()
                programs[name].step()
                seconds[name].append(time.perf_counter() - begin)
            peaks.append(matrix_peak_flops(device, precision, seconds=0.2))
        peak = statistics.median(peaks)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name in names:
            program, median = programs[name], medians[name]
            memory = (
                None if arguments.no_memory else peak_bytes(*_arguments(name, system, arguments))
            )
            row = {
                "tokens_per_second": round(program.tokens_per_step / median),
                "mfu": round(program.flops_per_step / median / peak, 4),
                "peak_bytes": memory,
                "ratio": round(medians[names[-1]] / median, 2),
            }
            results[f"{system}/{name[0]}-{name[1]}"] = row
            shown = "–" if memory is None else f"{memory / 2**20:,.0f} MiB"
            print(f"| {system} | {name[0]} {name[1]} | {row['tokens_per_second']:,} | "
                  f"{row['mfu']:.1%} | {shown} | {row['ratio']:.2f} |", flush=True)  # fmt: skip
        print(f"| | measured {precision} matrix peak: {peak / 1e9:,.0f} GFLOP/s | | | | |")
    print(json.dumps({"benchmark": "pretrain_step", "batch_size": arguments.batch_size,
                      "threads": arguments.threads, "rounds": arguments.rounds,
                      "results": results}))  # fmt: skip


def _arguments(
    name: tuple[str, str], system: str, arguments: argparse.Namespace
) -> tuple[str, str, str, int]:
    return name[0], system, name[1], arguments.batch_size


if __name__ == "__main__":
    main()
