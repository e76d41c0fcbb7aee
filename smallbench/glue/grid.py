"""All runs of a protocol: planned, dealt to shards, claimed by workers, resumed, never repeated.

Shards are independent. A task whose learning rate is chosen belongs to one shard, so that shards on
machines without a shared disk can be merged. Workers that share one `out` need no shards: each
claims a run by a file lock, which the kernel releases when the holder dies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from smallbench.errors import ConfigError, InterruptedRunError
from smallbench.files import try_lock
from smallbench.glue.choice import CHOICE, choice_data, choice_rows
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.features import Features
from smallbench.glue.finetune import finetune, settings_for, tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.protocols import CHOICE_SEED, Protocol, chosen_rate, departures, protocol_named
from smallbench.glue.results import (
    RunResult,
    RunSettings,
    find_run,
    require_one_model,
    run_directory,
    run_name,
)
from smallbench.glue.task_data import TaskData
from smallbench.glue.tasks import TASKS, Task, task_named
from smallbench.stop import NEVER, Stop

POLL_SECONDS = 2.0
"""Seconds between two checks for results of other workers."""


@dataclass(frozen=True)
class GridRun:
    """A run that a protocol needs."""

    task: str
    split: str
    """Name of the scored split: `choice` or `dev`."""
    learning_rate: float | None
    """None: the rate that the task's `choice` runs select."""
    seed: int


def plan_task(
    task: Task,
    protocol: Protocol,
    *,
    learning_rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[GridRun]:
    """Return the runs of one task; rates and seeds default to those of the protocol."""
    rates = learning_rates or protocol.learning_rates
    seeds = seeds or protocol.seeds(task)
    if protocol.chooses_rate and len(rates) > 1:
        choice = [GridRun(task.name, CHOICE, rate, CHOICE_SEED) for rate in rates]
        return choice + [GridRun(task.name, "dev", None, seed) for seed in seeds]
    return [GridRun(task.name, "dev", rate, seed) for rate in rates for seed in seeds]


def shard_of(
    plan: Sequence[GridRun], cost: Mapping[str, int], *, number: int, count: int
) -> list[GridRun]:
    """Return the runs of shard `number` (from 1) of `count`, in the plan's order.

    `cost` is that of a task's run. The most expensive group goes to the emptiest shard.
    """
    choosing = {run.task for run in plan if run.split == CHOICE}
    groups: dict[object, list[GridRun]] = {}
    for run in plan:
        groups.setdefault(run.task if run.task in choosing else run, []).append(run)
    loads, mine = [0] * count, set()
    for group in sorted(groups.values(), key=lambda g: len(g) * cost[g[0].task], reverse=True):
        lightest = loads.index(min(loads))
        loads[lightest] += len(group) * cost[group[0].task]
        if lightest == number - 1:
            mine.update(group)
    return [run for run in plan if run in mine]


def cost_of(data: TaskData, config: FinetuneConfig) -> int:
    """Return the cost of a run: the characters that it reads, since rows differ in length."""
    train = data.splits["train"]
    characters = sum(map(len, train.first)) + sum(map(len, train.second or ()))
    return (config.epochs or data.task.default_epochs) * characters


def measure(
    encoder: PretrainedEncoder,
    tasks: Sequence[TaskData],
    config: FinetuneConfig,
    *,
    protocol: str,
    out: Path,
    learning_rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    shard: tuple[int, int] = (1, 1),
    on_stored: Callable[[Path], None] = lambda directory: None,
    stop: Stop = NEVER,
) -> list[RunResult]:
    """Run what `protocol` needs of `encoder`, or shard K of N of it; stored runs are not repeated.

    `on_stored` is called with the folder of each run that ends. Before the first run it prints why
    the result will be unranked: other rates, seeds, settings or data than the official ones.
    """
    view = protocol_named(protocol)
    for data in tasks:
        if data.task.name in TASKS and data.task.name not in view.tasks:
            raise ConfigError(
                f"task {data.task.name} is not in protocol {protocol}; expected: "
                f"{', '.join(view.tasks)}"
            )
    configs = {data.task.name: view.completed(config, data.task) for data in tasks}
    grid = _Grid(encoder, tasks, configs, out, on_stored, stop)
    plan = [
        run
        for data in tasks
        for run in plan_task(data.task, view, learning_rates=learning_rates, seeds=seeds)
    ]
    planned = [grid.settings(run, run.learning_rate or 0.0) for run in plan]
    unofficial = [reason for data in tasks for reason in data.unofficial]
    if found := [*departures(view, planned), *unofficial]:
        print(f"unranked: {'; '.join(found)}", file=sys.stderr, flush=True)
    number, count = shard
    mine = shard_of(plan, grid.work, number=number, count=count)
    if not mine:
        print(
            f"--shard={number}/{count} has no work: there are fewer runs than shards (those of a "
            "task whose learning rate is chosen count as one)",
            file=sys.stderr,
        )
    return grid.run(mine)


def run_grid(
    encoder: PretrainedEncoder,
    tasks: Sequence[TaskData],
    config: FinetuneConfig,
    *,
    plan: Sequence[GridRun],
    out: Path,
    on_stored: Callable[[Path], None] = lambda directory: None,
    shows_runs: bool = True,
    stop: Stop = NEVER,
) -> list[RunResult]:
    """Fine-tune the runs of `plan` in order, unless they are stored; return all results.

    A run that another process works on is waited for. Raises `ConfigError` before the first run if
    `out` has runs of another model, `InterruptedRunError` if `stop` asks for it.
    """
    configs = {data.task.name: config for data in tasks}
    return _Grid(encoder, tasks, configs, out, on_stored, stop).run(plan, shows_runs=shows_runs)


def _rate(
    run: GridRun, plan: Sequence[GridRun], results: Mapping[GridRun, RunResult]
) -> float | None:
    """Return the learning rate of a planned run; None until its task has chosen one."""
    if run.learning_rate is not None:
        return run.learning_rate
    choice = [other for other in plan if other.task == run.task and other.split == CHOICE]
    if not all(other in results for other in choice):
        return None
    return chosen_rate([results[other] for other in choice])


@dataclass
class _Grid:
    encoder: PretrainedEncoder
    tasks: Sequence[TaskData]
    configs: Mapping[str, FinetuneConfig]
    out: Path
    on_stored: Callable[[Path], None]
    stop: Stop

    def __post_init__(self) -> None:
        encoder, configs = self.encoder, self.configs
        self.data = data = {
            whole.task.name: whole.first(configs[whole.task.name].max_train_examples)
            for whole in self.tasks
        }
        self.work = {name: cost_of(part, configs[name]) for name, part in data.items()}
        # Without `self` inside, so that a grid is freed at once.
        self.choice_data = lru_cache(lambda task: choice_data(data[task]))
        self.tokenized = lru_cache(maxsize=1)(
            lambda task: tokenize_task(encoder, data[task], configs[task])
        )

    def settings(self, run: GridRun, rate: float) -> RunSettings:
        data, config = self.data[run.task], self.configs[run.task]
        found = settings_for(self.encoder, data, config, learning_rate=rate, seed=run.seed)
        return replace(found, split=run.split)

    def run(self, plan: Sequence[GridRun], *, shows_runs: bool = True) -> list[RunResult]:
        first = GridRun(self.tasks[0].task.name, "dev", None, seed=0)
        require_one_model(self.out, self.settings(first, 0.0))
        results: dict[GridRun, RunResult] = {}
        work = sum(self.work[run.task] for run in plan)
        display = _Display(num_runs=len(plan), work=work, shows_runs=shows_runs)
        with closing(display):
            while pending := [run for run in plan if run not in results]:
                for run in pending:
                    result = self.attempt(run, _rate(run, plan, results), display)
                    if result is not None:
                        results[run] = result
                if not results.keys() & {*pending}:  # other workers have them all
                    display.wait(len(pending))
                    if self.stop.asked():
                        raise InterruptedRunError(
                            "Stop requested while other workers were running; finished runs are "
                            "stored"
                        )
                    time.sleep(POLL_SECONDS)
        return [results[run] for run in plan]

    def attempt(self, run: GridRun, rate: float | None, display: _Display) -> RunResult | None:
        """Return the result of a run; None if it is in progress elsewhere or has no rate yet."""
        if rate is None:
            return None
        data = self.choice_data(run.task) if run.split == CHOICE else self.data[run.task]
        settings = self.settings(run, rate)
        with try_lock(self.out / "locks" / f"{run.task}_{run_name(settings)}") as is_mine:
            if not is_mine:
                return None
            directory = run_directory(self.out, settings)
            result = find_run(directory, settings, data)
            was_stored = result is not None
            if result is None:
                name = f"{data.task.title} {run.split}, seed {run.seed}"
                result = finetune(
                    self.encoder,
                    data,
                    self.configs[run.task],
                    learning_rate=rate,
                    seed=run.seed,
                    out=self.out,
                    features=self.features_of(run),
                    on_progress=partial(display.step, name, self.work[run.task]),
                    stop=self.stop,
                )
                self.on_stored(directory)
        display.result(result, self.work[run.task], was_stored=was_stored)
        return result

    def features_of(self, run: GridRun) -> dict[str, Features]:
        features = self.tokenized(run.task)
        if run.split != CHOICE:
            return features
        rows = choice_rows(self.data[run.task].splits["train"])
        return {name: features["train"].take(those) for name, those in rows.items()}


class _Display:
    """A bar over all work on a terminal, else one JSON line for each run.

    Work may have any unit that is the same for all runs. Without `shows_runs`, only the bar is
    shown.
    """

    def __init__(self, *, num_runs: int, work: int, shows_runs: bool = True) -> None:
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
        self.close = self._bar.close

    def step(self, name: str, work: int, fraction: float) -> None:
        done = self._done + int(fraction * work)
        self._bar.set_description_str(f"{name} ({self._num_finished + 1}/{self._num_runs})", False)
        eta = self._eta_seconds(done)
        if eta is not None:
            self._bar.set_postfix_str(f"ETA {timedelta(seconds=round(eta))}", False)
        self._bar.update(done - self._bar.n)

    def wait(self, num_runs: int) -> None:
        if not self._is_waiting:
            message = f"waiting for other workers to finish {num_runs} runs"
            self._bar.write(message, sys.stderr)
        self._is_waiting = True

    def result(self, run: RunResult, work: int, *, was_stored: bool) -> None:
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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
