"""What watches a run: records of its metrics, held-out loss, checkpoints."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.files import temporary_sibling
from smallbench.objectives.base import Objective
from smallbench.tracking.base import Tracker
from smallbench.tracking.plot import plot_loss
from smallbench.train.budget import Budget, Progress
from smallbench.train.config import PretrainConfig
from smallbench.train.engine import Engine
from smallbench.train.trainer import Callback, StepResult, add_means, count_targets

LOG_SECONDS = 60.0
"""Seconds of training after which a record is due, however few steps they were."""


class LogTraining(Callback):
    """Every `every_steps`, and once a minute at least, one record of what happened since the last.

    Losses are means over the steps between; they are read from the device only then. What is
    collected and not yet logged belongs to the run's state, so that a resumed run logs the same.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        every_steps: int,
        budget: Budget,
        peak_flops: float | None,
        also: Callable[[Progress], Mapping[str, float]] = lambda progress: {},
    ) -> None:
        """`also` gives further fields of a record."""
        self._trackers = trackers
        self._every_steps = every_steps
        self._budget = budget
        self._peak_flops = peak_flops
        self._also = also
        self._pending: dict[str, list[Tensor]] = {}

    def on_start(self, progress: Progress) -> None:
        """Measure speed from here."""
        self._mark(progress)

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected since the last record."""
        return {"pending": self._means()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on collecting."""
        self._pending = {
            name: [torch.tensor(value) for value in values]
            for name, values in state["pending"].items()
        }

    def _means(self) -> dict[str, list[float]]:
        return {name: _read(values) for name, values in self._pending.items()}

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Collect; at the interval and at the end, log."""
        seconds = progress.train_seconds - self._seconds
        for name, value in {"loss": result.loss, **result.means}.items():
            self._pending.setdefault(name, []).append(value)
        is_due = progress.step % self._every_steps == 0 or seconds >= LOG_SECONDS
        if not is_due and not result.is_last:
            return
        steps, flops = progress.step - self._step, progress.train_flops - self._flops
        flops_per_second = flops / seconds
        means = {name: finite_or_none(fmean(values)) for name, values in self._means().items()}
        record = {
            "event": "train",
            "step": progress.step,
            "tokens": progress.num_tokens,
            "train_seconds": progress.train_seconds,
            **means,
            "learning_rate": result.learning_rate,
            "grad_norm": finite_or_none(result.grad_norm),
            "skipped_steps": progress.num_skipped_steps,
            "tokens_per_second": (progress.num_tokens - self._tokens) / seconds,
            "mfu": flops_per_second / self._peak_flops if self._peak_flops else None,
            "eta_seconds": round(
                self._budget.seconds_left(
                    progress,
                    seconds_per_step=seconds / steps,
                    flops_per_step=flops / steps,
                ),
                1,
            ),
            **self._also(progress),
        }
        for tracker in self._trackers:
            tracker.log(record)
        self._pending.clear()
        self._mark(progress)

    def _mark(self, progress: Progress) -> None:
        self._step, self._seconds = progress.step, progress.train_seconds
        self._tokens, self._flops = progress.num_tokens, progress.train_flops


def finite_or_none(value: float) -> float | None:
    """JSON has no number for infinity and NaN."""
    return value if math.isfinite(value) else None


def _read(values: Sequence[Tensor]) -> list[float]:
    """Scalar tensors as numbers, in one copy from their device."""
    device = values[-1].device
    return torch.stack([value.to(device) for value in values]).double().tolist()


@torch.no_grad()
def evaluate(
    objective: Objective,
    engine: Engine,
    batches: Sequence[Batch],
    *,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean losses and counts over fixed batches, in evaluation mode; draws no random number."""
    objective.eval()
    totals = count_targets(objective, batches)
    means: dict[str, Tensor] = {}
    for batch in batches:
        add_means(means, engine.forward(batch.to(engine.device)), totals)
        beat()
    objective.train()
    return {name: float(value) for name, value in means.items()}


class HeldOutLoss(Callback):
    """Before the first step, every `every_steps` and at the end, the losses on held-out text.

    Its corruption is fixed.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        objective: Objective,
        engine: Engine,
        batches: Sequence[Batch],
        *,
        every_steps: int,
        unigram_entropy: float,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`beat` is called after each batch."""
        self._trackers, self._beat = trackers, beat
        self._objective, self._engine, self._batches = objective, engine, batches
        self._every_steps = every_steps
        self._unigram_entropy = unigram_entropy
        self._is_begun = False

    def on_start(self, progress: Progress) -> None:
        """Evaluate the initial weights of a new run."""
        if not self._is_begun:
            self.log(progress)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the initial weights were evaluated."""
        return {"is_begun": self._is_begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do not evaluate twice."""
        self._is_begun = state["is_begun"]

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Evaluate at the interval and at the end."""
        if progress.step % self._every_steps and not result.is_last:
            return
        self.log(progress)

    def log(self, progress: Progress) -> None:
        """Evaluate now."""
        self._is_begun = True
        start = time.perf_counter()
        means = evaluate(self._objective, self._engine, self._batches, beat=self._beat)
        weights = self._objective.weights
        record = {
            "event": "eval",
            "step": progress.step,
            "tokens": progress.num_tokens,
            "train_seconds": progress.train_seconds,
            "loss": finite_or_none(sum(w * means[f"{term}_loss"] for term, w in weights.items())),
            **{name: finite_or_none(value) for name, value in means.items()},
            "unigram_entropy": self._unigram_entropy,
            "eval_seconds": time.perf_counter() - start,
        }
        for tracker in self._trackers:
            tracker.log(record)


class Heartbeat(Callback):
    """`heartbeat.json`, at most once a second: tells a slow run from a dead one.

    A probe kills a run whose heartbeat is ten minutes old. So work beside the steps calls `beat` as
    it makes progress; no thread does, since a step that hangs must be found.
    """

    def __init__(self, path: Path, *, every_seconds: float = 1.0) -> None:
        self._path, self._every_seconds = path, every_seconds
        self._last, self._step, self._has_stepped = -math.inf, 0, False

    def on_start(self, progress: Progress) -> None:
        """Begin before the first evaluation."""
        self._step = progress.step
        self.beat()

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Write the step and the time."""
        if not self._has_stepped:  # the first step shows at once, however fast it came
            self._has_stepped, self._last = True, -math.inf
        self._step = progress.step
        self.beat()

    def beat(self) -> None:
        """Write the last step and the time."""
        if time.monotonic() - self._last < self._every_seconds:
            return
        self._last = time.monotonic()
        # Not flushed to the disk: after a power cut nobody asks for it.
        temporary = temporary_sibling(self._path)
        temporary.write_text(
            json.dumps({"step": self._step, "unix_seconds": round(time.time(), 3)}) + "\n"
        )
        temporary.replace(self._path)


class TellTheEnd(Callback):
    """At the end of a run that hours or FLOPs ended, says how much of its schedule is left."""

    def __init__(self, config: PretrainConfig, budget: Budget) -> None:
        self._config, self._budget = config, budget

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Say it."""
        if not is_done or self._budget.fraction(progress) >= 1:
            return
        train = self._config.train
        is_time = progress.train_seconds >= self._budget.max_seconds
        limit = f"{train.max_hours:g} hours" if is_time else f"{train.max_flops:g} FLOPs"
        flag = "--max_hours" if is_time else "--flops"
        print(
            f"{limit} are used up at step {progress.step:,}{of_steps(self._budget)}, where the "
            f"learning rate has not come down yet; with a larger {flag} the same command goes on",
            file=sys.stderr,
        )


class PlotLoss(Callback):
    """Draws the loss curve of a run that is done."""

    def __init__(self, metrics: Path, picture: Path, *, title: str) -> None:
        self._metrics, self._picture, self._title = metrics, picture, title

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Draw it."""
        if is_done:
            plot_loss(self._metrics, self._picture, title=self._title)


class AtEnd(Callback):
    """Calls a function when the run is done."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_end(self, progress: Progress, *, is_done: bool) -> None:
        """Call it."""
        if is_done:
            self._function()


def of_steps(budget: Budget) -> str:
    """Return the end, for people: ` of 1,000`; nothing if steps are not the limit."""
    return "" if math.isinf(budget.max_steps) else f" of {budget.max_steps:,.0f}"
