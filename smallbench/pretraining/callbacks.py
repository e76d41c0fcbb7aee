"""Callbacks that observe a run: records of its metrics, held-out loss, heartbeat."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from smallbench.batch import Batch
from smallbench.checkpoints.uploader import Uploader
from smallbench.files import atomic_writer
from smallbench.pretraining.usage import UsageMeter
from smallbench.tracking.base import Tracker
from smallbench.train.budget import Budget, Progress
from smallbench.train.memory import PeakMeter, exhaustion_raised
from smallbench.train.trainer import Callback, StepResult, evaluate

LOG_SECONDS = 60.0
"""Seconds of training after which a record is due, however few steps they were."""


class LogTraining(Callback):
    """Writes a record every `every_steps`, at least once a minute, and after the last step.

    Losses are means over the steps since the last record, and are read from the device only then.
    What is not logged yet belongs to the run's state, so that a resumed run logs the same.
    """

    name = "log"

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        every_steps: int,
        peak_flops: float | None,
        usage: UsageMeter | None = None,
        uploader: Uploader | None = None,
        memory: PeakMeter | None = None,
    ) -> None:
        self._trackers, self._every_steps, self._peak_flops = trackers, every_steps, peak_flops
        self._usage, self._uploader, self._memory = usage, uploader, memory
        self._pending: dict[str, list[Tensor]] = {}

    def on_start(self, progress: Progress) -> None:
        """Measure speed from here."""
        self._mark(progress)

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected since the last record."""
        return {"pending": self._read_pending()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue collecting."""
        self._pending = {n: [*map(torch.tensor, v)] for n, v in state["pending"].items()}

    def _read_pending(self) -> dict[str, list[float]]:
        """Return the scalars as numbers, in one copy from their device for each name."""
        return {
            name: torch.stack([v.to(values[-1].device) for v in values]).double().tolist()
            for name, values in self._pending.items()
        }

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Collect; log if it is due."""
        seconds = progress.train_seconds - self._seconds
        for name, value in {"loss": result.loss, **result.means}.items():
            self._pending.setdefault(name, []).append(value)
        is_due = progress.step % self._every_steps == 0 or seconds >= LOG_SECONDS
        if not is_due and not result.is_last:
            return
        steps, flops = progress.step - self._step, progress.train_flops - self._flops
        left = self.trainer.budget.seconds_left(
            progress, seconds_per_step=seconds / steps, flops_per_step=flops / steps
        )
        record = {
            **_begin("train", progress),
            **{name: finite_or_none(fmean(v)) for name, v in self._read_pending().items()},
            "learning_rate": result.learning_rate,
            "grad_norm": finite_or_none(result.grad_norm),
            "skipped_steps": progress.num_skipped_steps,
            "tokens_per_second": (progress.num_tokens - self._tokens) / seconds,
            "mfu": flops / seconds / self._peak_flops if self._peak_flops else None,
            "eta_seconds": round(left, 1),
            "train_flops": progress.train_flops,
        }
        if self._usage:
            used = self._usage.update(progress)
            record |= {name: value for name, value in used.items() if name != "energy_method"}
        if self._memory and not self._memory.is_host:
            record["peak_memory_bytes"] = self._memory.peak_bytes()
        if self._uploader:  # the steps that would be lost with the disk
            record["sync_lag_steps"] = progress.step - self._uploader.committed_step
        for tracker in self._trackers:
            tracker.log(record)
        self._pending.clear()
        self._mark(progress)

    def _mark(self, progress: Progress) -> None:
        self._step, self._seconds = progress.step, progress.train_seconds
        self._tokens, self._flops = progress.num_tokens, progress.train_flops


def _begin(event: str, progress: Progress) -> dict[str, Any]:
    return {
        "event": event,
        "step": progress.step,
        "tokens": progress.num_tokens,
        "train_seconds": progress.train_seconds,
    }


def finite_or_none(value: float) -> float | None:
    """Return None for infinity and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


class HeldOutLoss(Callback):
    """Evaluates fixed batches before the first step, every `every_steps` and at the end."""

    name = "evaluation"

    def __init__(
        self,
        trackers: Sequence[Tracker],
        batches: Sequence[Batch],
        *,
        every_steps: int,
        unigram_entropy: float,
    ) -> None:
        self._trackers, self._batches = trackers, batches
        self._every_steps, self._unigram_entropy = every_steps, unigram_entropy
        self._is_begun = False

    def on_start(self, progress: Progress) -> None:
        """Evaluate the initial weights of a new run."""
        if not self._is_begun:
            self._log(progress)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the initial weights were evaluated."""
        return {"is_begun": self._is_begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do not evaluate them again."""
        self._is_begun = state["is_begun"]

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Evaluate at the interval and at the end."""
        if progress.step % self._every_steps == 0 or result.is_last:
            self._log(progress)

    def _log(self, progress: Progress) -> None:
        self._is_begun = False  # evaluate again after a restart with a smaller micro-batch
        start, objective = time.perf_counter(), self.trainer.objective
        with exhaustion_raised(lambda: None):
            means = evaluate(objective, self.trainer.engine, self._batches, beat=self.trainer.beat)
        self._is_begun = True
        measured = {t: w for t, w in objective.weights.items() if f"{t}_loss" in means}
        loss = sum(weight * means[f"{term}_loss"] for term, weight in measured.items())
        record = {
            **_begin("eval", progress),
            "loss": finite_or_none(loss),
            **{name: finite_or_none(value) for name, value in means.items()},
            "unigram_entropy": self._unigram_entropy,
            "eval_seconds": time.perf_counter() - start,
        }
        for tracker in self._trackers:
            tracker.log(record)


class Heartbeat(Callback):
    """Writes step and time to a file, at most once a second: tells a slow run from a dead one.

    A probe kills a run whose heartbeat is ten minutes old, so work beside the steps calls `beat` as
    it makes progress. No thread does: a step that hangs must be found.
    """

    def __init__(self, path: Path, *, every_seconds: float = 1.0) -> None:
        self._path, self._every_seconds = path, every_seconds
        self._last, self._step, self._has_stepped = -math.inf, 0, False

    def on_start(self, progress: Progress) -> None:
        """Begin before the first evaluation."""
        self._step = progress.step
        self.beat()

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Write the step; the first one at once."""
        if not self._has_stepped:
            self._has_stepped, self._last = True, -math.inf
        self._step = progress.step
        self.beat()

    def beat(self) -> None:
        """Write the last step and the time."""
        if time.monotonic() - self._last < self._every_seconds:
            return
        self._last = time.monotonic()
        content = {"step": self._step, "unix_seconds": round(time.time(), 3)}
        # Not flushed to the disk: it has no meaning after a power cut.
        with atomic_writer(self._path, flush=False) as stream:
            stream.write(json.dumps(content).encode() + b"\n")


def undecayed(budget: Budget, progress: Progress) -> str:
    """Return a warning if hours or FLOPs ended the run before its schedule; empty otherwise."""
    if budget.fraction(progress) >= 1:
        return ""
    if progress.train_seconds >= budget.max_seconds:
        limit, flag = f"{budget.max_seconds / 3600:g} hours", "--max_hours"
    else:
        limit, flag = f"{budget.max_flops:g} FLOPs", "--flops"
    where = f"step {progress.step:,}{of_steps(budget)}"
    return (
        f"{limit} are used up at {where}, before the learning rate has decayed; the same "
        f"command with a larger {flag} continues the run"
    )


def of_steps(budget: Budget) -> str:
    """Return ` of 1,000`, or nothing if steps are not the limit."""
    return "" if math.isinf(budget.max_steps) else f" of {budget.max_steps:,.0f}"
