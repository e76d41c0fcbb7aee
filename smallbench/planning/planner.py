"""What the ways to train a recipe need of a device, and which of them a run takes.

Memory on the device comes from `planning.memory_trace`, which runs the step that it is asked about.
What DeepSpeed keeps elsewhere is counted from its buffers, listed at `Offloaded`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from smallbench.errors import ConfigError, SmallbenchError, UnavailableError, reason_of
from smallbench.gpus import GIB, Gpu
from smallbench.objectives.base import PretrainObjective
from smallbench.planning.memory_trace import (
    StepMemory,
    StepTracer,
    stand_in_vocabulary,
    tracer_of,
)
from smallbench.planning.step_time import ADAM_BYTES, StepTime, step_time
from smallbench.train.config import PretrainConfig, plugins_of
from smallbench.train.deepspeed_engine import BUCKET_ELEMENTS
from smallbench.train.engine import EngineChoice, choose_engine
from smallbench.train.precision import DTYPES

MARGIN = 0.10
"""Part of a device's memory that a plan leaves free: CUDA's context and cuBLAS's workspaces take
about half a GB, and PyTorch's allocator cannot use every gap."""

HEAP_WASTE = 0.3
"""On a CPU, where the C library's heap is told to keep what is freed: gaps between the blocks that
outlive a layer, as a part of what the step would hold without recomputation. Measured for five
recipes, 8 to 96 rows, 4 to 24 layers: 0.2 to 0.36."""

RECOMPUTED_HEAP_WASTE = 0.5
"""The same in fp32 if activations are recomputed. Measured for five recipes, 8 and 32 rows, 2 to 12
layers: 0.42 to 0.59."""

LIVE_ELEMENTS = 10**9
"""Of the parameters that ZeRO-3 leaves on the device (DeepSpeed's stage3_max_live_parameters)."""

MIN_TOKENS = 1024
"""Tokens of a forward pass below which a plan rather gives up speed elsewhere: the matrices get too
small for a GPU."""

MAX_TRACED_TOKENS = 2**18
"""Tokens of the largest forward pass that is traced. The loss is computed in blocks, so more tokens
are more operations to trace; memory is linear in the rows long before."""

Choice = tuple[EngineChoice, bool]
"""An engine, and whether activations are recomputed."""

# The fastest first: recomputing costs a third more work, offloading the traffic of every gradient.
CHOICES: tuple[Choice, ...] = (
    (EngineChoice("torch", "none"), False),
    (EngineChoice("torch", "none"), True),
    (EngineChoice("deepspeed", "optimizer"), False),
    (EngineChoice("deepspeed", "optimizer"), True),
    (EngineChoice("deepspeed", "parameters"), False),
    (EngineChoice("deepspeed", "parameters"), True),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of one way to train, with `num_rows` rows in a forward pass."""

    engine: str
    offload: str
    checkpoint_activations: bool
    num_rows: int
    weights: int
    gradients: int
    states: int
    activations: int
    other: int
    """What else lives at the peak: a layer's gradients, logits, buckets, an allocator's waste."""
    peak: int
    host: int
    """In the host's memory, if something is offloaded."""
    save: int
    """What a save adds in the host's memory: one tensor of the card at a time."""

    @property
    def fixed(self) -> int:
        """What no smaller micro-batch saves."""
        return self.weights + self.gradients + self.states

    @property
    def label(self) -> str:
        """For people."""
        name = self.engine if self.offload == "none" else f"{self.offload} offloaded"
        return name + (", recomputing" if self.checkpoint_activations else "")


class UnplannedError(UnavailableError):
    """A plug-in does something that only real tensors can do, so no step of it can be traced."""


@contextmanager
def _plugin_errors_explained(config: PretrainConfig) -> Iterator[None]:
    try:
        yield
    except SmallbenchError:
        raise
    except Exception as error:
        if not plugins_of(config):
            raise
        reason = reason_of(error)
        raise UnplannedError(
            f"the memory of {config.model.architecture} cannot be planned, since a step of it does "
            f"not run on tensors without data ({reason})"
        ) from error


class Planner:
    """Memory of a configuration's ways to train, traced once each."""

    def __init__(self, config: PretrainConfig, *, device_type: str, precision: str) -> None:
        """Raises `ConfigError` if the size of the vocabulary is open."""
        self.config, self.device_type, self.precision = config, device_type, precision
        stand_in_vocabulary(config)

    def _tracer(self, is_offloaded: bool) -> StepTracer:
        with _plugin_errors_explained(self.config):
            return tracer_of(
                self.config, device_type=self.device_type, precision=self.precision,
                offloaded=is_offloaded,
            )  # fmt: skip

    @property
    def objective(self) -> PretrainObjective:
        """The model with what it learns, on fake tensors."""
        return self._tracer(False).objective

    def num_steps(self) -> int:
        """Return about how many steps the run makes; a limit in hours is not counted."""
        train = self.config.train
        if train.max_flops is None:
            return train.max_steps
        steps = math.ceil(train.max_flops / (self.flops_per_token() * self.config.tokens_per_step))
        return steps if self.config.schedule.along == "flops" else min(steps, train.max_steps)

    @property
    def num_parameters(self) -> int:
        """All that are trained."""
        return sum(p.numel() for p in self.objective.parameters())

    @property
    def _largest_parameter(self) -> int:
        return max(p.numel() for p in self.objective.parameters())

    @property
    def num_embedding_parameters(self) -> int:
        """Those of them that are looked up."""
        tables = (m for m in self.objective.modules() if isinstance(m, nn.Embedding))
        return sum(p.numel() for p in {p for m in tables for p in m.parameters()})

    def flops_per_token(self) -> float:
        """As the model counts them, forward and backward; rows may differ in their targets."""
        batch = self._tracer(False).sample(16)
        return self.objective.train_flops(batch) / batch.num_tokens

    def logit_bytes(self, num_rows: int) -> int:
        """The scores of a forward pass's targets, its largest tensor."""
        batch = self._tracer(False).sample(num_rows)
        rows = self.config.model.num_embedding_rows
        return batch.num_targets * rows * DTYPES[self.precision].itemsize

    def _step(self, choice: Choice, num_rows: int) -> tuple[StepMemory, int]:
        """Return a traced step and the number of its micro-batches."""
        engine, recompute = choice
        count = -(-self.config.train.global_batch_size // num_rows)
        tracer = self._tracer(engine.offload != "none")
        with _plugin_errors_explained(self.config):
            return tracer.step(num_rows, accumulates=count > 1, checkpoint=recompute), count

    def memory(self, choice: Choice, num_rows: int) -> Memory:
        """What a way to train takes with `num_rows` rows in a forward pass."""
        engine, recompute = choice
        step, _ = self._step(choice, num_rows)
        weights, peak, host = step.weights, step.peak, 0
        if engine.offload != "none":
            weights, extra, host = self._offloaded(engine.offload)
            peak += weights - step.weights + extra
        if self.device_type == "cpu":
            whole, _ = self._step((engine, False), num_rows)
            is_wide = recompute and self.precision == "fp32"
            waste = RECOMPUTED_HEAP_WASTE if is_wide else HEAP_WASTE
            peak += round(waste * (whole.peak - whole.weights - whole.states))
            if engine.engine == "deepspeed":
                # It begins with a copy of the float32 weights; the hole that they leave stays.
                peak += 4 * self.num_parameters
        known = weights + step.gradients + step.states + step.activations
        return Memory(
            engine=engine.engine,
            offload=engine.offload,
            checkpoint_activations=recompute,
            num_rows=num_rows,
            weights=weights,
            gradients=step.gradients,
            states=step.states,
            activations=step.activations,
            other=max(0, peak - known),
            peak=peak,
            host=host,
            save=0 if host or self.device_type == "cpu" else 4 * self._largest_parameter,
        )

    def time(self, choice: Choice, num_rows: int, gpu: Gpu) -> StepTime:
        """Return the time of a step on a card."""
        step, num_micro_batches = self._step(choice, num_rows)
        offload = choice[0].offload
        low_bytes = DTYPES[self.precision].itemsize * self.num_parameters
        # Gradients go down; from the second micro-batch on, their sum comes back for the addition.
        # With the parameters away, the weights come for the forward and for the backward pass.
        passes = (2 if num_micro_batches > 1 else 1) + (2 if offload == "parameters" else 0)
        host = (passes * low_bytes, ADAM_BYTES * self.num_parameters)
        return step_time(
            step, gpu, self.precision, num_micro_batches=num_micro_batches,
            host_bytes=(0, 0) if offload == "none" else host,
        )  # fmt: skip

    def _offloaded(self, offload: str) -> tuple[int, int, int]:
        """Bytes of weights and of buffers on the device, and those on the host.

        As DeepSpeed 0.19 allocates them (runtime/zero/stage_1_and_2.py and stage3.py).
        """
        size, count = DTYPES[self.precision].itemsize, self.num_parameters
        largest = self._largest_parameter
        # float32 masters, their gradients and two moments; weights and gradients in the precision
        # on their way between.
        host = (4 + 4 + 8 + 2 * size) * count + largest * size
        # A GPU reserves the whole bucket, a CPU the part of it that is written.
        bucket = BUCKET_ELEMENTS if self.device_type == "cuda" else min(BUCKET_ELEMENTS, count)
        on_device = count if offload == "optimizer" else min(count, LIVE_ELEMENTS)
        if offload == "parameters":
            host += size * count
        return on_device * size, (bucket + largest) * size, host

    def largest_rows(self, choice: Choice, limit: int) -> int:
        """Return about the most rows of a forward pass under `limit` bytes, up to a whole batch.

        By the line through the peaks of the configured rows and of twice as many. A peak is the
        largest of several lines, so there are never more rows than this.
        """
        rows, whole = rows_to_plan(self.config), self.config.train.global_batch_size
        memory = self.memory(choice, rows)
        if memory.fixed > limit:
            return 0
        if rows == whole and memory.peak <= limit:
            return whole
        slope = (self.memory(choice, 2 * rows).peak - memory.peak) / rows
        return max(0, min(whole, rows + int((limit - memory.peak) // slope)))


@dataclass(frozen=True)
class Decision:
    """What a run does where its configuration leaves that open."""

    engine: EngineChoice
    checkpoint_activations: bool
    num_rows: int
    """Of a micro-batch."""

    @property
    def choice(self) -> Choice:
        """The way to train."""
        return self.engine, self.checkpoint_activations


def usable_bytes(memory_bytes: int) -> int:
    """What a plan fills of a device's memory."""
    return int((1 - MARGIN) * memory_bytes)


def smaller(num_rows: int) -> int | None:
    """The next smaller micro-batch that divides this one: the global batch stays what it is."""
    factors = (n for n in range(2, math.isqrt(num_rows) + 1) if num_rows % n == 0)
    return num_rows // next(factors, num_rows) if num_rows > 1 else None


def rows_to_plan(config: PretrainConfig) -> int:
    """Return the configured rows of a forward pass, or their largest divisor that can be traced."""
    rows = config.train.rows_per_forward
    most = max(1, MAX_TRACED_TOKENS // config.sequence_length)
    return rows if rows <= most else next(n for n in range(most, 0, -1) if rows % n == 0)


def choices_of(config: PretrainConfig, *, may_recompute: bool = False) -> list[Choice]:
    """The ways to train that the configuration leaves open; the fastest first.

    `may_recompute` offers recomputed activations also where they were not asked for.
    """
    train, found = config.train, []
    asked = train.checkpoint_activations
    for engine, recompute in CHOICES:
        if train.offload not in {"auto", engine.offload}:
            continue
        if engine.engine == "deepspeed" and config.optim.optimizer != "adamw":
            continue
        if recompute != asked and not (recompute and may_recompute):
            continue
        try:  # the configuration knows what fits together
            changed = replace(train, offload=engine.offload)
        except ConfigError:
            continue
        found.append((choose_engine(changed), recompute))
    return found


def decide(planner: Planner, choices: Sequence[Choice], limit: int) -> Decision | None:
    """Return the fastest way with the configured rows, or with fewer that still fill a GPU.

    If none is left, the way with the most rows; None if not even one row fits.
    """
    most = rows_to_plan(planner.config)
    enough = min(most, -(-MIN_TOKENS // planner.config.sequence_length))
    best: Decision | None = None
    for choice in choices:
        rows = _fitting_rows(planner, choice, limit, most)
        if rows is not None and (best is None or rows > best.num_rows):
            best = Decision(*choice, rows)
        if rows is not None and rows >= enough:
            return Decision(*choice, rows)
    return best


def _fitting_rows(planner: Planner, choice: Choice, limit: int, most: int) -> int | None:
    """Return the largest micro-batch that fits, a divisor of `most` rows.

    What is offloaded may take multiples of them: each micro-batch carries every gradient to the
    host.
    """
    if planner.memory(choice, most).fixed > limit:
        return None
    config = planner.config
    largest = most
    if choice[0].offload != "none":
        most_traced = MAX_TRACED_TOKENS // config.sequence_length
        while largest <= most_traced // 2 and config.train.global_batch_size % (2 * largest) == 0:
            largest *= 2
    elif planner.memory(choice, most).peak <= limit:
        return most
    likely = planner.largest_rows(choice, limit)
    rows: int | None = largest
    while rows is not None and (rows > likely or planner.memory(choice, rows).peak > limit):
        rows = smaller(rows)
    return rows


def choose(
    config: PretrainConfig, *, device_type: str, precision: str, memory_bytes: int
) -> Decision:
    """Engine, offload and micro-batch for a device with `memory_bytes`.

    What the configuration says stands; `auto` is what fits and is fastest. On a CPU, whose memory
    is the host's, nothing is offloaded. Raises `UnavailableError` where nothing fits.
    """
    choices = choices_of(config)
    if device_type == "cpu":
        return Decision(*choices[0], config.train.rows_per_forward)
    planner = Planner(config, device_type=device_type, precision=precision)
    try:
        decision = decide(planner, choices, usable_bytes(memory_bytes))
    except UnplannedError:  # a run finds out by itself what fits
        return Decision(*choices[0], config.train.rows_per_forward)
    if decision is None:
        needed = min(planner.memory(choice, 1).peak for choice in choices)
        raise UnavailableError(
            f"one row at a time takes {needed / GIB:.1f} GiB of the device, of whose "
            f"{memory_bytes / GIB:.1f} GiB a plan fills {usable_bytes(memory_bytes) / GIB:.1f}; "
            "set --train.checkpoint_activations, or leave --train.offload to auto"
        )
    return decision
