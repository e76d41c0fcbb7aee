"""All five systems on one GPU: tokens/s, MFU, memory, and the days that the paper's budget takes.

Needs no network and nothing but torch, transformers and what comes with them; takes under eight
minutes. Rows: our step, eager and compiled, at the recipe's batch; the peer's step; and our step at
the largest batch that stays under 16 GB. Each row is printed as it comes, as a line of the table
and as a line of JSON, which `smallbench plan --measured` reads. A row that fails says why, and the
others follow.

    python -m benchmarks.gpu [--systems=bert,electra] [--seconds=4] [--no_compile]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.systems import SYSTEMS, Program, config_of, ours, theirs
from smallbench.errors import UnavailableError
from smallbench.train.memory import is_out_of_memory
from smallbench.train.precision import choose_device, choose_precision, matrix_peak_flops

CARD_BYTES = 16e9
PAPER_TOKENS = 1_000_000 * 128 * 128
HEAD = (
    "| system | program | batch | tokens/s | MFU | peak GB | days for 16.4B tokens |\n"
    "|---|---|--:|--:|--:|--:|--:|"
)


def measure(
    build: Callable[[], Program], device: torch.device, *, seconds: float
) -> tuple[Program, float, int]:
    """The program, its median seconds a step, and its peak bytes on the device."""
    gc.collect()
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    program = build()
    num_steps = 3 if is_gpu else 1
    for _ in range(num_steps):
        program.step()  # warm-up, and compilation where there is any
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < num_steps:
        begin = time.perf_counter()
        program.step()  # reads its loss, so it waits for the device
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if is_gpu else 0
    return program, statistics.median(times), peak


def largest_batch(system: str, precision: str, device: torch.device) -> int:
    """The largest power of two whose step stays under a 16 GB card's memory."""
    batch_size = 128
    while batch_size < 8192:
        build = partial(ours, system, batch_size=2 * batch_size, precision=precision, device=device)
        try:
            _, _, peak = measure(build, device, seconds=0)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if peak > CARD_BYTES:
            break
        batch_size *= 2
    return batch_size


def builds_of(
    system: str, precision: str, device: torch.device, *, batch_size: int | None, compiled: bool
) -> Iterator[tuple[str, int, bool, Callable[[], Program]]]:
    """Program, batch size, whether it is compiled, and what builds it."""
    usual = batch_size or config_of(system).train.global_batch_size
    our = partial(ours, system, precision=precision, device=device)
    their = partial(theirs, system, precision=precision, device=device)
    yield "ours", usual, False, partial(our, batch_size=usual)
    if compiled:
        yield "ours", usual, True, partial(our, batch_size=usual, compile=True)
    yield "theirs", usual, False, partial(their, batch_size=usual)
    if device.type == "cuda":
        largest = largest_batch(system, precision, device)
        yield "ours", largest, False, partial(our, batch_size=largest)


def run_systems(
    systems: list[str],
    *,
    device: torch.device,
    precision: str,
    seconds: float,
    compiled: bool,
    batch_size: int | None = None,
    end: float = float("inf"),
) -> list[dict[str, object]]:
    """Measure and print each row until the clock (`time.monotonic`) reaches `end`."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    peak = matrix_peak_flops(device, precision)
    print(f"{name}, torch {torch.__version__}, {precision}, measured matrix peak "
          f"{peak / 1e12:.1f} TFLOP/s\n{HEAD}", flush=True)  # fmt: skip
    results: list[dict[str, object]] = []
    for system in systems:
        rows = builds_of(system, precision, device, batch_size=batch_size, compiled=compiled)
        for who, size, is_compiled, build in rows:
            label = f"| {system} | {who}{' compiled' if is_compiled else ''} | {size} |"
            if time.monotonic() > end:
                print(f"{label} left out: no time left |", flush=True)
                continue
            try:
                program, median, memory = measure(build, device, seconds=seconds)
            except Exception as error:  # whatever a compiler or a card raises
                text = str(error).strip().partition("\n")[0]
                print(f"{label} failed: {type(error).__name__}: {text} |", flush=True)
                continue
            finally:
                torch._dynamo.reset()
            rate = program.tokens_per_step / median
            row = {
                "benchmark": "gpu",
                "device": name,
                "precision": precision,
                "recipe": config_of(system).recipe,
                "program": who,
                "compile": is_compiled,
                "batch_size": size,
                "tokens_per_second": round(rate),
                "mfu": round(program.flops_per_step / median / peak, 4),
                "peak_bytes": memory,
                "days": round(PAPER_TOKENS / rate / 86_400, 2),
            }
            results.append(row)
            print(f"{label} {rate:,.0f} | {row['mfu']:.1%} | {memory / 1e9:.2f} | "
                  f"{row['days']:.2f} |\n{json.dumps(row)}", flush=True)  # fmt: skip
            del program
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a row")
    parser.add_argument("--no_compile", action="store_true")
    arguments = parser.parse_args()
    try:
        device = choose_device("cuda")
    except UnavailableError as error:
        parser.exit(69, f"{error}\n")
    run_systems(
        arguments.systems.split(","),
        device=device,
        precision=choose_precision("auto", device),
        seconds=arguments.seconds,
        compiled=not arguments.no_compile,
    )


if __name__ == "__main__":
    main()
