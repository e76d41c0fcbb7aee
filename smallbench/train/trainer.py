"""The one training loop, for pretraining and fine-tuning alike.

Objective, engine, batches and schedule come in ready; everything that only watches (logging,
held-out loss, checkpoints) is a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.errors import DivergedError
from smallbench.objectives.base import Objective, Sums
from smallbench.train.batches import BatchSource
from smallbench.train.engine import Engine
from smallbench.train.randomness import random_state, restore_random_state


@dataclass
class Progress:
    """Where a run stands; the whole of it is in every checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: int = 0
    """Where the next step's batch begins in the source."""
    num_tokens: int = 0
    train_seconds: float = 0.0
    """Seconds spent in steps; saving and evaluating are not in it."""
    train_flops: float = 0.0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0

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
    """Runs steps from `progress.step` to `num_steps`.

    Raises `DivergedError` after `max_nonfinite_steps` skipped updates in a row. `should_stop` is
    read after each step, and within one after each micro-batch: True ends `run` early, with
    everything in a state to be saved. (A step that was begun is then undone: it changed nothing but
    the generators, which dropout draws from.)
    """

    def __init__(
        self,
        *,
        objective: Objective,
        engine: Engine,
        batches: BatchSource,
        learning_rate: Callable[[int], float],
        num_steps: int,
        progress: Progress | None = None,
        callbacks: Sequence[Callback] = (),
        should_stop: Callable[[], bool] = lambda: False,
        max_nonfinite_steps: int = 20,
    ) -> None:
        self.objective = objective
        self.engine = engine
        self.batches = batches
        self.learning_rate = learning_rate
        self.num_steps = num_steps
        self.progress = progress or Progress()
        self.callbacks = callbacks
        self.should_stop = should_stop
        self.max_nonfinite_steps = max_nonfinite_steps

    def run(self) -> bool:
        """Train; True when the last step was reached, False when stopped before."""
        self.objective.module.train()
        while self.progress.step < self.num_steps:
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
            if self.should_stop() and self.progress.step < self.num_steps:
                return False
        return True

    def train_step(self) -> StepResult | None:
        """One optimizer step: draw, count, backpropagate each share, update.

        None where it was asked to stop in the middle; then nothing has changed.
        """
        start, progress = time.perf_counter(), self.progress
        generators, flops = random_state(), progress.train_flops
        micro_batches, next_position = self.batches.read(progress.position)
        totals = count_targets(self.objective, micro_batches)
        means: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.engine.device)
        for number, host_batch in enumerate(micro_batches):
            if number and self.should_stop():
                self.engine.discard_gradients()
                restore_random_state(generators)
                progress.train_flops = flops
                return None
            batch = host_batch.to(self.engine.device)
            with self.engine.autocast():
                sums = self.objective(batch)
            share = weigh(self.objective, sums, totals)
            self.engine.backward(share)
            loss += share.detach()
            add_means(means, sums, totals)
            progress.train_flops += self.objective.train_flops(host_batch)
        learning_rate = self.learning_rate(progress.step)
        update = self.engine.step(learning_rate=learning_rate)
        progress.step += 1
        progress.position = next_position
        progress.num_tokens += sum(batch.num_tokens for batch in micro_batches)
        progress.num_skipped_steps += update.skipped
        progress.num_skipped_in_a_row = progress.num_skipped_in_a_row + 1 if update.skipped else 0
        progress.train_seconds += time.perf_counter() - start
        return StepResult(
            step=progress.step,
            learning_rate=learning_rate,
            grad_norm=update.grad_norm,
            skipped=update.skipped,
            means=means,
            loss=loss,
        )
