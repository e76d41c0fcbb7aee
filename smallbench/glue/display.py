"""Progress of a grid of fine-tuning runs: one line a run, and the remaining time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from tqdm import tqdm

from smallbench.glue.results import RunResult
from smallbench.glue.tasks import task_named


class GridDisplay:
    """A bar over all work on a terminal, else one JSON line for each run.

    Work may have any unit that is the same for all runs.
    """

    def __init__(self, *, num_runs: int, work: int, shows_runs: bool = True) -> None:
        """Without `shows_runs`, only the bar is shown."""
        self._num_runs, self._work, self._shows_runs = num_runs, work, shows_runs
        self._num_finished = self._done = self._found = 0
        self._is_waiting = False
        self._start = time.monotonic()
        self._bar = tqdm(
            total=work,
            bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix}",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> GridDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def step(self, name: str, work: int, fraction: float) -> None:
        """Report that the current run has done `fraction` of its work."""
        done = self._done + int(fraction * work)
        self._bar.set_description_str(f"{name} ({self._num_finished + 1}/{self._num_runs})", False)
        eta = self._eta_seconds(done)
        if eta is not None:
            self._bar.set_postfix_str(f"ETA {timedelta(seconds=round(eta))}", False)
        self._bar.update(done - self._bar.n)

    def wait(self, num_runs: int) -> None:
        """Report that only runs of other workers are left."""
        if not self._is_waiting:
            message = f"waiting for other workers to finish {num_runs} runs"
            self._bar.write(message, sys.stderr)
        self._is_waiting = True

    def result(self, run: RunResult, work: int, *, was_stored: bool) -> None:
        """Report that a run has ended, or was found stored."""
        # Results found before the first own run ended are from earlier; later ones were computed
        # beside this process, and show the speed of all workers together.
        if was_stored and self._done == self._found:
            self._found += work
        self._num_finished += 1
        self._done += work
        self._bar.update(self._done - self._bar.n)
        eta = self._eta_seconds(self._done)
        if not self._shows_runs:
            return
        task, settings = task_named(run.settings.task), run.settings
        count = f"{self._num_finished}/{self._num_runs}"
        if self._bar.disable:
            line = {
                "event": "run",
                "task": task.name,
                "split": settings.split,
                "learning_rate": settings.learning_rate,
                "seed": settings.seed,
                task.ranking_metric: run.score,
                "failed": run.failed,
                "seconds": _rounded(run.seconds),
                "examples_per_second": _rounded(run.examples_per_second),
                "was_stored": was_stored,
                "run": count,
                "eta_seconds": _rounded(eta),
            }
            print(json.dumps(line), flush=True)
        else:
            how = "stored" if was_stored else f"{run.seconds or 0:.0f} s"
            failed = ", learned nothing" if run.failed else ""
            self._bar.write(
                f"{count} {task.title} {settings.split}, learning rate {settings.learning_rate}, "
                f"seed {settings.seed}: {task.ranking_metric} {run.score:.2f} ({how}{failed})",
                sys.stderr,
            )

    def _eta_seconds(self, done: int) -> float | None:
        worked = done - self._found
        elapsed = time.monotonic() - self._start
        return (self._work - done) * elapsed / worked if worked else None


def side_by_side(columns: Mapping[str, Sequence[RunResult]]) -> str:
    """Return a table for a terminal: a row for each task, a column for each model's runs."""
    width = max(map(len, columns))
    lines = [f"{'task':<8}{'metric':<10}" + "".join(f"  {name:>{width}}" for name in columns)]
    for runs in zip(*columns.values(), strict=True):
        task = task_named(runs[0].settings.task)
        cells = (f"  {run.score:>{width}.1f}{'*' if run.failed else ' '}" for run in runs)
        lines.append(f"{task.title:<8}{task.ranking_metric:<10}" + "".join(cells).rstrip())
    if any(run.failed for runs in columns.values() for run in runs):
        lines.append("* no better than always answering the majority class")
    return "\n".join(lines)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
