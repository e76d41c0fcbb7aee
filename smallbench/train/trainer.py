"""The one training loop, for pretraining and fine-tuning alike.

Objective, engine, batches and schedule come in ready; what surrounds the loop (logging, held-out
loss, checkpoints, uploads) is callbacks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.checkpoints.state import random_state, restore_random_state
from smallbench.errors import DivergedError
from smallbench.objectives.base import Objective, Sums
from smallbench.stop import NEVER, Stop
from smallbench.train.batch_sources import BatchSource
from smallbench.train.budget import Budget, Progress
from smallbench.train.engine import Engine
from smallbench.train.memory import exhaustion_raised


@dataclass(frozen=True)
class StepResult:
    """What one step measured. Losses and counts stay on the device until somebody reads them."""

    learning_rate: float
    grad_norm: float
    skipped: bool
    means: Mapping[str, Tensor]
    """Each term's mean loss over the step's targets, and each count's mean, by name."""
    loss: Tensor
    is_last: bool
    """Whether the run's budget is used up."""


class Callback:
    """Something that surrounds the loop. Every method may be left out."""

    name = ""
    """Key of its state in a checkpoint; empty if it has none."""
    trainer: Trainer
    """Set by the trainer that it is given to."""

    def on_start(self, progress: Progress) -> None:
        """Called before the first step of this attempt."""

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Called after each step, outside the measured time."""

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Called when the budget is used up (`is_done`), or after a request to stop."""

    def beat(self) -> None:
        """Called now and then while another callback works for long."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this callback, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; called before `on_start`."""


def count_targets(objective: Objective, micro_batches: Iterable[Batch]) -> dict[str, int]:
    """Return each term's targets over all micro-batches of a step; at least 1, to divide by."""
    totals: Counter[str] = Counter()
    for batch in micro_batches:
        totals.update(objective.num_targets(batch))
    return {term: max(total, 1) for term, total in totals.items()}


def weigh(objective: Objective, sums: Sums, totals: Mapping[str, int]) -> Tensor:
    """Return one micro-batch's share of the step's loss: `Σ weight × sum / step total`."""
    shares = [objective.weights[t] * loss / totals[t] for t, loss in sums.losses.items()]
    return torch.stack(shares).sum()


def add_means(means: dict[str, Tensor], sums: Sums, totals: Mapping[str, int]) -> None:
    """Add one micro-batch's share to the step's mean losses and counts."""
    parts = {f"{term}_loss": loss.detach() / totals[term] for term, loss in sums.losses.items()}
    parts |= {name: count / totals[term] for name, (term, count) in sums.counts.items()}
    for name, part in parts.items():
        means[name] = means[name] + part if name in means else part


@torch.no_grad()
def evaluate(
    objective: Objective,
    engine: Engine,
    batches: Sequence[Batch],
    *,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return mean losses and counts over fixed batches; draws no random number.

    `beat` is called after each batch.
    """
    objective.eval()
    totals = count_targets(objective, batches)
    means: dict[str, Tensor] = {}
    for batch in batches:
        add_means(means, engine.forward(batch.to(engine.device)), totals)
        beat()
    objective.train()
    return {name: float(value) for name, value in means.items()}


class Trainer:
    """Runs steps from `progress` until the budget is used up.

    `stop` is asked after each step but the last, and within a step after each micro-batch. If it
    asks, `run` returns early and undoes a step that was begun, which has changed only the
    generators of dropout.

    Raises `DivergedError` after `max_nonfinite_steps` skipped updates in a row, or if all steps of
    the run were skipped. Raises `MemoryExhaustedError` if the device's memory is too small; the
    step is then undone too, unless its update had begun.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        engine: Engine,
        batches: BatchSource,
        learning_rate: Callable[[Progress], float],
        budget: Budget,
        progress: Progress | None = None,
        callbacks: Sequence[Callback] = (),
        stop: Stop = NEVER,
        max_nonfinite_steps: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.objective, self.engine, self.batches = objective, engine, batches
        self.learning_rate, self.budget, self.stop = learning_rate, budget, stop
        self.progress, self.callbacks = progress or Progress(), callbacks
        self.max_nonfinite_steps, self.clock = max_nonfinite_steps, clock
        for callback in callbacks:
            callback.trainer = self

    def run(self) -> bool:
        """Train; return True when the budget is used up, False if stopped earlier."""
        self.objective.train()
        for callback in self.callbacks:
            callback.on_start(self.progress)
        is_done = self._run_steps()
        for callback in self.callbacks:
            callback.on_end(self.progress, is_done=is_done)
        return is_done

    def beat(self) -> None:
        """Let the callbacks know that work beside the steps makes progress."""
        for callback in self.callbacks:
            callback.beat()

    def callback_states(self) -> dict[str, Any]:
        """Return the state of each callback that has one, by its name."""
        return {c.name: c.state_dict() for c in self.callbacks if c.name}

    def load_callback_states(self, states: Mapping[str, Any]) -> None:
        """Restore what `callback_states` returned."""
        for callback in self.callbacks:
            if callback.name in states:
                callback.load_state_dict(states[callback.name])

    def _run_steps(self) -> bool:
        while not self.budget.is_over(self.progress):
            result = self.train_step()
            if result is None:
                return False
            for callback in self.callbacks:
                callback.after_step(self.progress, result)
            self._check_finite()
            if not result.is_last and self._asked_to_stop():
                return False
        self._check_finite()
        return True

    def train_step(self) -> StepResult | None:
        """Do one optimizer step: draw, count, backpropagate each share, update.

        None if asked to stop in the middle; then nothing has changed.
        """
        start, progress, engine = self.clock(), self.progress, self.engine
        next_fraction = self.budget.fraction(progress)
        learning_rate = self.learning_rate(progress)
        generators = random_state()
        micro_batches, next_position = self.batches.read(progress.position, progress.batch_fraction)
        totals = count_targets(self.objective, micro_batches)
        means: dict[str, Tensor] = {}
        loss = torch.zeros((), device=engine.device)
        mine = micro_batches[engine.processes.rank :: engine.processes.size]
        with exhaustion_raised(partial(self._undo, generators)):
            for number, host_batch in enumerate(mine):
                if number and self._asked_to_stop():
                    self._undo(generators)
                    return None
                sums = engine.forward(host_batch.to(engine.device))
                share = weigh(self.objective, sums, totals)
                engine.backward(share, is_last=number == len(mine) - 1)
                loss += share.detach()
                add_means(means, sums, totals)
        with exhaustion_raised(None):
            update = engine.step(learning_rate=learning_rate)
        progress.step += 1
        progress.position = next_position
        progress.batch_fraction = next_fraction
        progress.num_tokens += sum(batch.num_tokens for batch in micro_batches)
        progress.train_flops += sum(self.objective.train_flops(batch) for batch in micro_batches)
        progress.num_skipped_steps += update.skipped
        progress.num_skipped_in_a_row = progress.num_skipped_in_a_row + 1 if update.skipped else 0
        progress.train_seconds += engine.processes.first_of(self.clock() - start)
        return StepResult(
            learning_rate=learning_rate,
            grad_norm=update.grad_norm,
            skipped=update.skipped,
            means={name: engine.processes.sum(mean) for name, mean in means.items()},
            loss=engine.processes.sum(loss),
            is_last=self.budget.is_over(progress),
        )

    def _asked_to_stop(self) -> bool:
        return self.engine.processes.any(self.stop.asked())

    def _check_finite(self) -> None:
        in_a_row, step = self.progress.num_skipped_in_a_row, self.progress.step
        ends_so = self.budget.is_over(self.progress) and in_a_row >= min(MIN_SKIPPED_AT_END, step)
        if in_a_row and (in_a_row >= self.max_nonfinite_steps or ends_so):
            steps = f"{in_a_row} steps in a row, the last of them " if in_a_row > 1 else ""
            raise DivergedError(
                f"the gradient was not finite in {steps}step {step:,}; start a new run with a "
                "lower learning rate"
            )

    def _undo(self, generators: Mapping[str, Tensor]) -> None:
        self.engine.discard_gradients()
        restore_random_state(generators)


MIN_SKIPPED_AT_END = 3
"""Skipped steps at the end of a run that mean divergence: fp16's loss scale skips one at a time."""
