"""What watches a run: records of its metrics, held-out loss, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.errors import ConflictError, SmallbenchError
from smallbench.files import temporary_sibling
from smallbench.objectives.base import Objective
from smallbench.tracking.base import Tracker
from smallbench.train.budget import Budget
from smallbench.train.engine import Engine
from smallbench.train.trainer import Progress, StepResult, add_means, count_targets


class LogTraining:
    """Every `every_steps`, one record of what happened since the last one.

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
        progress: Progress,
        pending: Mapping[str, Sequence[float]] | None = None,
        also: Callable[[Progress], Mapping[str, float]] = lambda progress: {},
    ) -> None:
        """`also` gives further fields of a record."""
        self._trackers = trackers
        self._every_steps = every_steps
        self._budget = budget
        self._peak_flops = peak_flops
        self._also = also
        self._pending: dict[str, list[Tensor]] = {
            name: [torch.tensor(value) for value in values]
            for name, values in (pending or {}).items()
        }
        self._mark(progress)

    def state_dict(self) -> dict[str, list[float]]:
        """What was collected since the last record."""
        return {name: _read(values) for name, values in self._pending.items()}

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Collect; at the interval and at the end, log."""
        for name, value in {"loss": result.loss, **result.means}.items():
            self._pending.setdefault(name, []).append(value)
        if progress.step % self._every_steps and not result.is_last:
            return
        seconds = progress.train_seconds - self._seconds
        flops_per_second = (progress.train_flops - self._flops) / seconds
        means = {name: finite_or_none(fmean(values)) for name, values in self.state_dict().items()}
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
                    progress.step,
                    progress.train_seconds,
                    seconds_per_step=seconds / (progress.step - self._step),
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
def evaluate(objective: Objective, engine: Engine, batches: Sequence[Batch]) -> dict[str, float]:
    """Mean losses and counts over fixed batches, in evaluation mode; draws no random number."""
    objective.module.eval()
    totals = count_targets(objective, batches)
    means: dict[str, Tensor] = {}
    for batch in batches:
        add_means(means, engine.forward(batch.to(engine.device)), totals)
    objective.module.train()
    return {name: float(value) for name, value in means.items()}


class HeldOutLoss:
    """Every `every_steps` and at the end, the losses on held-out text with fixed corruption."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        objective: Objective,
        engine: Engine,
        batches: Sequence[Batch],
        *,
        every_steps: int,
        unigram_entropy: float,
    ) -> None:
        self._trackers = trackers
        self._objective, self._engine, self._batches = objective, engine, batches
        self._every_steps = every_steps
        self._unigram_entropy = unigram_entropy

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Evaluate at the interval and at the end."""
        if progress.step % self._every_steps and not result.is_last:
            return
        self.log(progress)

    def log(self, progress: Progress) -> None:
        """Evaluate now."""
        start = time.perf_counter()
        means = evaluate(self._objective, self._engine, self._batches)
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


class SaveEvery:
    """Calls `save` at the interval and at milestones."""

    def __init__(
        self, save: Callable[[], None], *, every_steps: int, milestones: Collection[int] = ()
    ) -> None:
        self._save, self._every_steps, self._milestones = save, every_steps, milestones

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Save at the interval and at milestones."""
        if progress.step % self._every_steps == 0 or progress.step in self._milestones:
            self._save()


class Heartbeat:
    """`heartbeat.json`, at most once a second: for whoever must tell a slow run from a dead one."""

    def __init__(self, path: Path, *, every_seconds: float = 1.0) -> None:
        self._path, self._every_seconds = path, every_seconds
        self._last = -math.inf

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Write the step and the time."""
        if time.monotonic() - self._last < self._every_seconds:
            return
        self._last = time.monotonic()
        # Not flushed to the disk: after a power cut nobody asks for it.
        temporary = temporary_sibling(self._path)
        temporary.write_text(
            json.dumps({"step": progress.step, "unix_seconds": round(time.time(), 3)}) + "\n"
        )
        temporary.replace(self._path)


class EndWith:
    """Ends the run with an error that happened beside it, in a thread."""

    def __init__(
        self, failure: Callable[[], SmallbenchError | None], save: Callable[[], None]
    ) -> None:
        self._failure, self._save = failure, save

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Raise it; save before, unless the run is somebody else's by now."""
        error = self._failure()
        if error is None:
            return
        if not isinstance(error, ConflictError):
            self._save()
        raise error
