"""The plan of a recipe on a card: memory, the way to train, time, energy and money."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from smallbench.gpus import GIB, Gpu
from smallbench.planning.planner import (
    CHOICES,
    MIN_TOKENS,
    Choice,
    Decision,
    Memory,
    Planner,
    choices_of,
    decide,
    rows_to_plan,
    usable_bytes,
)
from smallbench.planning.step_time import Pair, StepTime
from smallbench.train.config import PretrainConfig


@dataclass(frozen=True)
class Speed:
    """How fast, and how that is known. Pairs have the fast end first."""

    tokens_per_second: Pair
    mfu: Pair
    method: str
    step: StepTime | None
    """The parts of an estimate; None if the speed was measured."""


@dataclass(frozen=True)
class Cost:
    """What a number of steps takes. Pairs have the fast end first."""

    steps: int
    tokens: int
    hours: Pair
    kwh: Pair
    """The card's TDP over these hours, without the machine around it."""
    price: Pair | None
    """None without a price per hour."""


@dataclass(frozen=True)
class Plan:
    """A recipe on a GPU."""

    recipe: str
    gpu: str
    memory_bytes: int
    usable_bytes: int
    precision: str
    sequence_length: int
    global_batch_size: int
    num_parameters: int
    num_embedding_parameters: int
    flops_per_token: float
    logit_bytes: int
    ways: tuple[Memory, ...]
    """Each way, with the configured rows in a forward pass."""
    largest_rows: tuple[int, ...]
    """For each way the most rows of a forward pass; 0 where not even one fits."""
    decision: Decision | None
    chosen: Memory | None
    """The memory of the decision."""
    reason: str
    speed: Speed | None
    whole: Cost | None
    """All steps of the recipe."""
    budget: Cost | None
    """What `--hours` allows at the slow end."""

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2)


def make_plan(
    config: PretrainConfig,
    gpu: Gpu,
    *,
    measured: Callable[[Decision, str], float] | None = None,
    hours: float | None = None,
    price_per_hour: float | None = None,
    compares: bool = True,
) -> Plan:
    """Return the plan of a recipe on a card; `compares` adds the ways that are not chosen.

    `measured` returns the tokens/s of a decision in a precision (see `planning.measured`), instead
    of an estimate. Raises `ConfigError` if the card cannot compute in the precision.
    """
    precision = config.train.precision
    precision = gpu.default_precision if precision == "auto" else precision
    gpu.peak_flops(precision)  # raises for a precision that the card does not have
    planner = Planner(config, device_type="cuda", precision=precision)
    choices = choices_of(config, may_recompute=True)
    limit = usable_bytes(gpu.memory_bytes)
    decision = decide(planner, choices, limit)
    rows = rows_to_plan(config)
    speed = whole = budget = chosen = None
    if decision is not None:
        chosen = planner.memory(decision.choice, decision.num_rows)
        rate = None if measured is None else measured(decision, precision)
        speed = _speed(planner, decision, gpu, rate)
        tokens = config.tokens_per_step
        cost = partial(_cost, speed=speed, tokens=tokens, gpu=gpu, price_per_hour=price_per_hour)
        whole = cost(planner.num_steps())
        if hours is not None:
            budget = cost(int(3600 * hours * speed.tokens_per_second[1] / tokens))
    ways = CHOICES if compares else ()
    return Plan(
        recipe=config.recipe,
        gpu=gpu.name,
        memory_bytes=gpu.memory_bytes,
        usable_bytes=limit,
        precision=precision,
        sequence_length=config.sequence_length,
        global_batch_size=config.train.global_batch_size,
        num_parameters=planner.num_parameters,
        num_embedding_parameters=planner.num_embedding_parameters,
        flops_per_token=planner.flops_per_token(),
        logit_bytes=planner.logit_bytes(rows),
        ways=tuple(planner.memory(choice, rows) for choice in ways),
        largest_rows=tuple(planner.largest_rows(choice, limit) for choice in ways),
        decision=decision,
        chosen=chosen,
        reason=_reason(planner, choices, decision, limit),
        speed=speed,
        whole=whole,
        budget=budget,
    )


def _cost(steps: int, *, speed: Speed, tokens: int, gpu: Gpu, price_per_hour: float | None) -> Cost:
    """Return the cost of so many steps of `tokens` each."""
    fast, slow = (steps * tokens / rate / 3600 for rate in speed.tokens_per_second)
    kilowatts, price = gpu.tdp_watts / 1000, None
    if price_per_hour is not None:
        price = price_per_hour * fast, price_per_hour * slow
    return Cost(steps, steps * tokens, (fast, slow), (kilowatts * fast, kilowatts * slow), price)


def _speed(planner: Planner, decision: Decision, gpu: Gpu, measured: float | None) -> Speed:
    """Return the speed of a decision: measured tokens/s, or the estimate."""
    config = planner.config
    per_token = planner.flops_per_token() / gpu.peak_flops(planner.precision)
    if measured is not None:
        mfu = measured * per_token
        return Speed((measured, measured), (mfu, mfu), "measured", None)
    step = planner.time(decision.choice, decision.num_rows, gpu)
    fast, slow = (config.tokens_per_step / seconds for seconds in step.seconds)
    method = "estimated" + (", as if not compiled" if config.train.compile else "")
    return Speed((fast, slow), (fast * per_token, slow * per_token), method, step)


def _reason(
    planner: Planner, choices: Sequence[Choice], decision: Decision | None, limit: int
) -> str:
    room = f"the {limit / GIB:.1f} GiB that a plan fills"
    if decision is None:
        least = min((planner.memory(choice, 1) for choice in choices), key=lambda m: m.peak)
        return (
            f"nothing fits: even one row at a time, {least.label}, takes {least.peak / GIB:.1f} "
            f"GiB, over {room}"
        )
    chosen = planner.memory(decision.choice, decision.num_rows)
    room += _divisor_hint(planner, decision, limit)
    faster = choices[: choices.index(decision.choice)]
    fits = f"takes {chosen.peak / GIB:.1f} GiB with {decision.num_rows} rows at a time"
    if not faster:
        return f"{chosen.label} is the fastest, and {fits}, of {room}"
    before = planner.memory(faster[-1], decision.num_rows)
    return (
        f"{chosen.label} {fits}, of {room}; the next faster way, {before.label}, would take "
        f"{before.peak / GIB:.1f} GiB"
    )


def _divisor_hint(planner: Planner, decision: Decision, limit: int) -> str:
    """Return what to do if only the batch's divisors make the micro-batch too small for a GPU."""
    train, rows = planner.config.train, decision.num_rows
    enough = -(-MIN_TOKENS // planner.config.sequence_length)
    if rows >= min(enough, train.rows_per_forward):
        return ""
    if planner.memory(decision.choice, 2 * rows).peak > limit:
        return ""
    return (
        f" (more rows fit, but {train.rows_per_forward:,} has no suitable divisor: choose a "
        "multiple of 64)"
    )
