"""What a person or a log collector sees while runs are fine-tuned: one line a run, and an ETA."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from smallbench.glue.results import RunResult
from smallbench.glue.tasks import TASKS


class GridDisplay:
    """A bar over all training examples on a terminal, else one JSON line for each run."""

    def __init__(self, examples_per_run: Sequence[int]) -> None:
        self._examples = list(examples_per_run)
        self._finished = 0
        self._bar = tqdm(
            total=sum(self._examples),
            unit="example",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._start, self._skipped_examples = time.monotonic(), 0

    def __enter__(self) -> GridDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def step(self, name: str, fraction: float) -> None:
        """The current run has done `fraction` of its steps."""
        self._bar.set_description_str(name, refresh=False)
        done = sum(self._examples[: self._finished]) + fraction * self._examples[self._finished]
        self._bar.update(int(done) - self._bar.n)

    def result(self, run: RunResult, *, was_stored: bool) -> None:
        """A run has ended, or was found stored."""
        if was_stored:
            self._skipped_examples += self._examples[self._finished]
        self._finished += 1
        done = sum(self._examples[: self._finished])
        self._bar.update(done - self._bar.n)
        remaining = sum(self._examples) - done
        worked = done - self._skipped_examples
        elapsed = time.monotonic() - self._start
        eta = remaining * elapsed / worked if worked else None
        task, settings = TASKS[run.settings.task], run.settings
        count = f"{self._finished}/{len(self._examples)}"
        if self._bar.disable:
            line = {
                "event": "run",
                "task": task.name,
                "seed": settings.seed,
                task.ranking_metric: run.score,
                "seconds": round(run.seconds, 1),
                "examples_per_second": round(run.examples_per_second, 1),
                "was_stored": was_stored,
                "run": count,
                "eta_seconds": None if eta is None else round(eta, 1),
            }
            print(json.dumps(line), flush=True)
        else:
            how = "stored" if was_stored else f"{run.seconds:.0f} s"
            self._bar.write(
                f"{count} {task.title} seed {settings.seed}: {task.ranking_metric} "
                f"{run.score:.2f} ({how})",
                sys.stderr,
            )
