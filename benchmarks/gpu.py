"""All five systems on one GPU: tokens/s, MFU, memory, and the days that the paper's budget takes.

Needs no network and nothing but torch, transformers and what comes with them; takes under eight
minutes. Rows: our step, eager and compiled, at the recipe's batch; the peer's step; and our step at
the largest batch that stays under 16 GB.

    python -m benchmarks.gpu [--systems=bert,electra] [--seconds=4] [--no_compile]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.systems import SYSTEMS, Program, config_of, ours, theirs
from smallbench.errors import ConfigError
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops

CARD_BYTES = 16e9
PAPER_TOKENS = 1_000_000 * 128 * 128


def measure(build: Callable[[], Program], *, seconds: float) -> tuple[Program, float, int]:
    """The program, its median seconds a step, and its peak bytes on the device."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    program = build()
    for _ in range(3):
        program.step()  # warm-up, and compilation where there is any
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        begin = time.perf_counter()
        program.step()  # reads its loss, so it waits for the device
        times.append(time.perf_counter() - begin)
    return program, statistics.median(times), torch.cuda.max_memory_allocated()


def largest_batch(system: str, precision: str, device: torch.device) -> int:
    """The largest power of two whose step stays under a 16 GB card's memory."""
    batch_size = 128
    while batch_size < 8192:
        try:
            build = partial(
                ours, system, batch_size=2 * batch_size, precision=precision, device=device
            )
            _, _, peak = measure(build, seconds=0)
        except torch.OutOfMemoryError:
            break
        if peak > CARD_BYTES:
            break
        batch_size *= 2
    return batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a row")
    parser.add_argument("--no_compile", action="store_true")
    arguments = parser.parse_args()
    try:
        device = choose_device("cuda")
    except ConfigError as error:
        parser.exit(69, f"{error}\n")
    precision = choose_precision("auto", device)
    peak = matrix_peak_flops(device, precision)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {precision}, measured "
          f"matrix peak {peak / 1e12:.1f} TFLOP/s")  # fmt: skip
    print("| system | program | batch | tokens/s | MFU | peak GB | days for 16.4B tokens |")
    print("|---|---|--:|--:|--:|--:|--:|")
    results = {}
    for system in arguments.systems.split(","):
        usual = config_of(system).train.global_batch_size
        largest = largest_batch(system, precision, device)
        our = partial(ours, system, precision=precision, device=device)
        their = partial(theirs, system, precision=precision, device=device)
        builds = {
            ("ours", usual): partial(our, batch_size=usual),
            ("theirs", usual): partial(their, batch_size=usual),
            ("ours", largest): partial(our, batch_size=largest),
        }
        if not arguments.no_compile:
            builds["ours compiled", usual] = partial(our, batch_size=usual, compile=True)
        for (who, batch_size), build in builds.items():
            program, seconds, memory = measure(build, seconds=arguments.seconds)
            rate = program.tokens_per_step / seconds
            row = {
                "tokens_per_second": round(rate),
                "mfu": round(program.flops_per_step / seconds / peak, 4),
                "peak_bytes": memory,
                "days": round(PAPER_TOKENS / rate / 86_400, 2),
            }
            results[f"{system}/{who}/{batch_size}"] = row
            print(f"| {system} | {who} | {batch_size} | {rate:,.0f} | {row['mfu']:.1%} | "
                  f"{memory / 1e9:.2f} | {row['days']:.2f} |", flush=True)  # fmt: skip
            del program
            torch._dynamo.reset()
    print(json.dumps({"benchmark": "gpu", "device": torch.cuda.get_device_name(),
                      "precision": precision, "results": results}))  # fmt: skip


if __name__ == "__main__":
    main()
