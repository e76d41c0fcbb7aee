"""A plan as a page for people: an aligned table, a sentence, and the next command."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from smallbench.config import command
from smallbench.gpus import GIB, GPUS
from smallbench.planning.gpu_plan import Plan
from smallbench.planning.planner import MARGIN, Memory, rows_to_plan
from smallbench.planning.step_time import Pair, StepTime
from smallbench.templates import from_template
from smallbench.train.config import PretrainConfig

UNITS = {"ms": 1e-3, "s": 1, "minutes": 60, "hours": 3600, "days": 86400, "years": 365 * 86400}
COLUMNS = ("weights", "gradients", "states", "activations", "other", "peak", "host")


def as_table(plan: Plan, config: PretrainConfig) -> str:
    """The page of `smallbench plan`."""
    choice = f"Choice: {plan.reason}."
    if plan.chosen is not None and plan.chosen.save:
        choice += f" A save adds {gib(plan.chosen.save)} GiB in the host's memory."
    return from_template(
        __package__,
        "plan.txt",
        plan=plan,
        peak_tflops=GPUS[plan.gpu].peak_tflops[plan.precision],
        margin=MARGIN,
        rows=rows_to_plan(config),
        tokens=config.tokens_per_step,
        memory_table=memory_table(plan),
        choice=textwrap.fill(choice, 100),
        step_parts=_parts(plan.speed.step) if plan.speed and plan.speed.step else (),
        next_command=_next(plan, config),
        gib=gib,
        millions=millions,
        three_digits=three_digits,
        between=between,
        duration=duration,
    ).rstrip()


def memory_table(plan: Plan) -> list[str]:
    """A line for each way to train; the chosen one is marked."""

    def way_of(memory: Memory | None) -> tuple[str, bool] | None:
        return None if memory is None else (memory.offload, memory.checkpoint_activations)

    heads = ["", *COLUMNS, "rows at most"]
    body = [
        [
            ("> " if way_of(way) == way_of(plan.chosen) else "  ") + way.label,
            *(gib(size) if (size := getattr(way, name)) else "–" for name in COLUMNS),
            f"{largest:,}" if largest else "none fits",
        ]
        for way, largest in zip(plan.ways, plan.largest_rows, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    return [_line(row, widths) for row in (heads, *body)]


def gib(size: int, digits: int = 2) -> str:
    """`14.40`."""
    return f"{size / GIB:.{digits}f}"


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


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)]).rstrip()


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


def _next(plan: Plan, config: PretrainConfig) -> str:
    train, decided, flags = config.train, plan.decision, []
    if decided and decided.num_rows != train.rows_per_forward:
        flags.append(f"--train.micro_batch_size={decided.num_rows}")
    if decided and decided.checkpoint_activations != train.checkpoint_activations:
        flags.append("--train.checkpoint_activations")
    if plan.budget and plan.whole and 0 < plan.budget.steps < plan.whole.steps:
        flags.append(f"--max_steps={plan.budget.steps}")
    line = command("pretrain", plan.recipe, data="corpus", run_dir=f"runs/{plan.recipe}")
    return " ".join([line, *flags])
