"""The one training loop, for pretraining and fine-tuning alike.

Objective, engine, batches and schedule come in ready; everything that only watches (logging,
held-out loss, checkpoints) is a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.errors import DivergedError
from smallbench.objectives.base import Objective, Sums
from smallbench.stop import NEVER, Stop
from smallbench.train.batches import BatchSource
from smallbench.train.budget import Budget
from smallbench.train.engine import Engine
from smallbench.train.memory import MemoryExhaustedError, is_out_of_memory
from smallbench.train.randomness import random_state, restore_random_state


@dataclass
class Progress:
    """Where a run stands; the whole of it is in every checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: int = 0
    """Where the next step's batch begins in the source."""
    batch_fraction: float = 0.0
    """The part of the run by which the next step's batch is made. It is known one step early, since
    batches are made while the step before them computes."""
    num_tokens: int = 0
    train_seconds: float = 0.0
    """Seconds spent in steps; saving and evaluating are not in it."""
    train_flops: float = 0.0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    """What the run has used up besides, see `train.usage`."""

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class StepResult:
    """What one step measured. Losses and counts stay on the device until somebody reads them."""

    step: int
    learning_rate: float
    grad_norm: float
    skipped: bool
    means: Mapping[str, Tensor]
    """Each term's mean loss over the step's targets, and each count's mean, by name."""
    loss: Tensor
    is_last: bool
    """Whether the run's budget is used up."""


class Callback(Protocol):
    """Something that watches a run."""

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Called after each step, outside the measured time."""
        ...


def count_targets(objective: Objective, micro_batches: Iterable[Batch]) -> dict[str, int]:
    """Targets of each term over all micro-batches of a step; at least 1, to divide by."""
    totals: dict[str, int] = {}
    for batch in micro_batches:
        for term, count in objective.num_targets(batch).items():
            totals[term] = totals.get(term, 0) + count
    return {term: max(total, 1) for term, total in totals.items()}


def weigh(objective: Objective, sums: Sums, totals: Mapping[str, int]) -> Tensor:
    """One micro-batch's share of the step's loss: `Σ weight × sum / step total`."""
    shares = [objective.weights[t] * loss / totals[t] for t, loss in sums.losses.items()]
    return torch.stack(shares).sum()


def add_means(means: dict[str, Tensor], sums: Sums, totals: Mapping[str, int]) -> None:
    """Add one micro-batch's share to the step's mean losses and counts."""
    parts = {f"{term}_loss": loss.detach() / totals[term] for term, loss in sums.losses.items()}
    parts |= {name: count / totals[term] for name, (term, count) in sums.counts.items()}
    for name, part in parts.items():
        means[name] = means[name] + part if name in means else part


class Trainer:
    """Runs steps from `progress.step` until the budget is used up.

    Raises `DivergedError` after `max_nonfinite_steps` skipped updates in a row. `stop` is
    asked after each step, and within one after each micro-batch: True ends `run` early, with
    everything in a state to be saved. (A step that was begun is then undone: it changed nothing but
    the generators, which dropout draws from.) Raises `MemoryExhaustedError` where the device's
    memory does not do; unless that was in the update itself, all is as it was before the step.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        engine: Engine,
        batches: BatchSource,
        learning_rate: Callable[[int], float],
        budget: Budget,
        progress: Progress | None = None,
        callbacks: Sequence[Callback] = (),
        stop: Stop = NEVER,
        max_nonfinite_steps: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.objective = objective
        self.engine = engine
        self.batches = batches
        self.learning_rate = learning_rate
        self.budget = budget
        self.progress = progress or Progress()
        self.callbacks = callbacks
        self.max_nonfinite_steps = max_nonfinite_steps
        self.clock = clock
        self.stop = stop

    def asked_to_stop(self) -> bool:
        """Return whether any process was asked to stop."""
        return self.engine.processes.any(self.stop.asked())

    def is_over(self) -> bool:
        """Whether the budget is used up."""
        return self.budget.is_over(self.progress.step, self.progress.train_seconds)

    def run(self) -> bool:
        """Train; True when the budget is used up, False when stopped before."""
        self.objective.module.train()
        while not self.is_over():
            result = self.train_step()
            if result is None:
                return False
            for callback in self.callbacks:
                callback.after_step(self.progress, result)
            if self.progress.num_skipped_in_a_row >= self.max_nonfinite_steps:
                raise DivergedError(
                    f"the gradient was not finite in {self.max_nonfinite_steps} steps in a row, "
                    f"the last of them step {result.step}; start a new run with a lower learning "
                    "rate"
                )
            if self.asked_to_stop() and not self.is_over():
                return False
        return True

    def train_step(self) -> StepResult | None:
        """One optimizer step: draw, count, backpropagate each share, update.

        None where it was asked to stop in the middle; then nothing has changed.
        """
        start, progress, engine = self.clock(), self.progress, self.engine
        next_fraction = self.budget.fraction(progress.step, progress.train_seconds)
        learning_rate = self.learning_rate(progress.step)
        generators = random_state()
        micro_batches, next_position = self.batches.read(
            progress.position, progress.batch_fraction, next_fraction
        )
        totals = count_targets(self.objective, micro_batches)
        means: dict[str, Tensor] = {}
        loss = torch.zeros((), device=engine.device)
        mine = micro_batches[engine.processes.rank :: engine.processes.size]
        with self._undone_without_memory(generators):
            for number, host_batch in enumerate(mine):
                if number and self.asked_to_stop():
                    self._undo(generators)
                    return None
                sums = engine.forward(host_batch.to(engine.device))
                share = weigh(self.objective, sums, totals)
                engine.backward(share, is_last=number == len(mine) - 1)
                loss += share.detach()
                add_means(means, sums, totals)
        with self._undone_without_memory(None):
            update = engine.step(learning_rate=learning_rate)
        progress.step += 1
        progress.position = next_position
        progress.batch_fraction = next_fraction
        progress.num_tokens += sum(batch.num_tokens for batch in micro_batches)
        progress.train_flops += sum(self.objective.train_flops(batch) for batch in micro_batches)
        progress.num_skipped_steps += update.skipped
        progress.num_skipped_in_a_row = progress.num_skipped_in_a_row + 1 if update.skipped else 0
        progress.train_seconds += engine.processes.first_of(self.clock() - start)
        means = {name: engine.processes.sum(mean) for name, mean in means.items()}
        return StepResult(
            step=progress.step,
            learning_rate=learning_rate,
            grad_norm=update.grad_norm,
            skipped=update.skipped,
            means=means,
            loss=engine.processes.sum(loss),
            is_last=self.is_over(),
        )

    def _undo(self, generators: Mapping[str, Tensor]) -> None:
        self.engine.discard_gradients()
        restore_random_state(generators)

    @contextmanager
    def _undone_without_memory(self, generators: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Where the block runs out of memory, undo it, or say that this cannot be done."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if generators is not None:
                self._undo(generators)
            raise MemoryExhaustedError(str(error), is_undone=generators is not None) from None
