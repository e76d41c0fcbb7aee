"""A plan as a page for people: an aligned table, a sentence, and the next command."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from smallbench.config import command
from smallbench.gpus import GIB, GPUS
from smallbench.planning.gpu_plan import Cost, Plan
from smallbench.planning.planner import MARGIN, Memory, rows_to_plan
from smallbench.planning.step_time import Pair, StepTime
from smallbench.train.config import PretrainConfig

UNITS = {"ms": 1e-3, "s": 1, "minutes": 60, "hours": 3600, "days": 86400, "years": 365 * 86400}
COLUMNS = ("weights", "gradients", "states", "activations", "other", "peak", "host")


def as_table(plan: Plan, config: PretrainConfig) -> str:
    """The page of `smallbench plan`."""
    gpu = GPUS[plan.gpu]
    rows, tokens = rows_to_plan(config), config.tokens_per_step
    inner = plan.num_parameters - plan.num_embedding_parameters
    targets = plan.logit_bytes / 2**20
    return "\n".join([
        f"{plan.recipe} on {plan.gpu}: {plan.memory_bytes / GIB:.1f} GiB, of which a plan leaves "
        f"{MARGIN:.0%} free; {plan.precision} at {gpu.peak_tflops[plan.precision]:g} TFLOP/s",
        "",
        f"  parameters   {millions(plan.num_parameters)}, without embeddings {millions(inner)}",
        f"  work         {plan.flops_per_token / 1e9:.3g} GFLOP a token; a step of "
        f"{plan.global_batch_size:,} x {plan.sequence_length} tokens "
        f"{plan.flops_per_token * tokens / 1e12:,.3g} TFLOP",
        "",
        f"  GiB with {rows} rows in a forward pass (their logits: {targets:,.0f} MiB)",
        "",
        *memory_table(plan),
        "",
        *textwrap.wrap(f"Choice: {plan.reason}.{_save(plan)}", 100),
        *_time(plan, tokens),
        *_next(plan, config),
    ])  # fmt: skip


def memory_table(plan: Plan) -> list[str]:
    """A line for each way to train; the chosen one is marked."""

    def way_of(memory: Memory | None) -> tuple[str, bool] | None:
        return None if memory is None else (memory.offload, memory.checkpoint_activations)

    heads = ["", *COLUMNS, "rows at most"]
    body = [
        [
            ("> " if way_of(way) == way_of(plan.chosen) else "  ") + way.label,
            *(_gib(getattr(way, name)) for name in COLUMNS),
            f"{largest:,}" if largest else "none fits",
        ]
        for way, largest in zip(plan.ways, plan.largest_rows, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    return [_line(row, widths) for row in (heads, *body)]


def millions(count: int) -> str:
    """`109.5M`."""
    return f"{count / 1e6:,.1f}M"


def three_digits(value: float) -> str:
    """`231,000` or `39.5`."""
    return f"{float(f'{value:.3g}'):,.15g}"


def between(pair: Pair, form: Callable[[float], str]) -> str:
    """Return `1.2–3.4`, the smaller first, or one number if both ends look alike."""
    low, high = (form(value) for value in sorted(pair))
    return low if low == high else f"{low}–{high}"


def duration(hours: Pair) -> str:
    """Return hours in the unit that people would use."""
    unit, size = unit_of(3600 * max(hours), at_least=3600)
    return f"{between(hours, lambda value: f'{3600 * value / size:,.1f}')} {unit}"


def unit_of(seconds: float, at_least: float = 0.0) -> tuple[str, float]:
    """Return the largest unit of time of which there are two, and its seconds."""
    units = [(name, size) for name, size in UNITS.items() if size >= at_least]
    return next((unit for unit in units[:0:-1] if seconds >= 2 * unit[1]), units[0])


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "–"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)]).rstrip()


def _time(plan: Plan, tokens: int) -> list[str]:
    if plan.speed is None or plan.whole is None:
        return []
    rate = between(plan.speed.tokens_per_second, three_digits)
    mfu = between(plan.speed.mfu, lambda value: f"{value:.1%}")
    lines = ["", f"Speed: {rate} tokens/s, MFU {mfu} ({plan.speed.method})", ""]
    if plan.speed.step is not None:
        lines += [*_parts(plan.speed.step), ""]
    lines.append(f"  the whole recipe   {_cost(plan.whole)}")
    if plan.budget is not None and plan.budget.steps:
        lines.append(f"  the hours given    {_cost(plan.budget)}")
    elif plan.budget is not None:
        seconds = tokens / plan.speed.tokens_per_second[1]
        lines.append(f"  the hours given    not one step: a step takes {seconds:,.3g} s")
    return [*lines, "", "Energy is the card's TDP over that time, without its machine."]


def _save(plan: Plan) -> str:
    if plan.chosen is None or not plan.chosen.save:
        return ""
    return f" A save adds {plan.chosen.save / GIB:.2f} GiB in the host's memory."


def _parts(step: StepTime) -> list[str]:
    """Return the parts of a step's time, in the unit of the whole."""
    unit, size = unit_of(max(step.seconds))
    parts = {
        "a step": step.seconds,
        "matrix products": step.matrix_products,
        "other kernels": step.other_kernels,
        f"host, {step.num_kernels:,} launches": step.launches,
        "offload": step.host,
    }
    width = max(map(len, parts))
    notes = {"a step": "  the card or the launches, whichever takes longer, and offload"}
    return [
        f"  {name.ljust(width)}  {between(pair, lambda value: three_digits(value / size))} {unit}"
        + notes.get(name, "")
        for name, pair in parts.items()
        if max(pair)
    ]


def _cost(cost: Cost) -> str:
    price = ""
    if cost.price is not None:
        price = f", {between(cost.price, lambda value: f'{value:,.2f}')} to pay"
    return (
        f"{cost.steps:,} steps, {cost.tokens / 1e9:,.3g}B tokens: {duration(cost.hours)}, "
        f"{between(cost.kwh, lambda value: f'{value:,.3g}')} kWh{price}"
    )


def _next(plan: Plan, config: PretrainConfig) -> list[str]:
    if plan.decision is None:
        return []
    flags = []
    if plan.decision.num_rows != config.train.rows_per_forward:
        flags.append(f"--train.micro_batch_size={plan.decision.num_rows}")
    if plan.decision.checkpoint_activations != config.train.checkpoint_activations:
        flags.append("--train.checkpoint_activations")
    if plan.budget and plan.whole and 0 < plan.budget.steps < plan.whole.steps:
        flags.append(f"--max_steps={plan.budget.steps}")
    line = command("pretrain", plan.recipe, data="corpus", run_dir=f"runs/{plan.recipe}")
    return ["", "Next:", "  " + " ".join([line, *flags])]
