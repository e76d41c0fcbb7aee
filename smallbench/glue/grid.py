"""All runs of a protocol: planned, dealt to shards, claimed by workers, resumed, never repeated.

Shards are independent. A task whose learning rate is chosen belongs to one shard, so that shards on
machines without a shared disk can be merged. Workers that share one `out` need no shards: each
claims a run by a file lock, which the kernel releases when the holder dies.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smallbench.errors import ConfigError, InterruptedRunError
from smallbench.files import try_lock
from smallbench.glue.choice import CHOICE, choice_data, choice_rows
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.display import GridDisplay
from smallbench.glue.features import Features
from smallbench.glue.finetune import finetune, num_epochs, settings_for, tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.protocols import CHOICE_SEED, Protocol, chosen_rate, departures, protocol_named
from smallbench.glue.results import RunResult, find_run, run_directory, run_name
from smallbench.glue.task_data import TaskData
from smallbench.glue.tasks import TASKS, Task
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
    """Return the cost of a run: the characters that it reads, since the length of rows differs by
    task."""
    train = data.first(config.max_train_examples).splits["train"]
    characters = sum(map(len, train.first)) + sum(map(len, train.second or ()))
    return num_epochs(data.task, config) * characters


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
    plan = [
        run
        for data in tasks
        for run in plan_task(data.task, view, learning_rates=learning_rates, seeds=seeds)
    ]
    by_name = {data.task.name: data for data in tasks}
    configs = {data.task.name: view.completed(config, data.task) for data in tasks}
    planned = [
        replace(
            settings_for(
                encoder,
                by_name[run.task],
                configs[run.task],
                learning_rate=run.learning_rate or 0.0,
                seed=run.seed,
            ),
            split=run.split,
        )
        for run in plan
    ]
    unofficial = [reason for data in tasks for reason in data.unofficial]
    if found := [*departures(view, planned), *unofficial]:
        print(f"unranked: {'; '.join(found)}", file=sys.stderr, flush=True)
    number, count = shard
    cost = {data.task.name: cost_of(data, configs[data.task.name]) for data in tasks}
    mine = shard_of(plan, cost, number=number, count=count)
    if not mine:
        print(
            f"--shard={number}/{count} has no work: there are fewer tasks than shards",
            file=sys.stderr,
        )
    return run_grid(encoder, tasks, configs, plan=mine, out=out, on_stored=on_stored, stop=stop)


def run_grid(
    encoder: PretrainedEncoder,
    tasks: Sequence[TaskData],
    config: FinetuneConfig | Mapping[str, FinetuneConfig],
    *,
    plan: Sequence[GridRun],
    out: Path,
    on_stored: Callable[[Path], None] = lambda directory: None,
    shows_runs: bool = True,
    stop: Stop = NEVER,
) -> list[RunResult]:
    """Fine-tune the runs of `plan` in order, unless they are stored; return all results.

    `config` holds for all tasks, or is a mapping with one for each. A run that another process
    works on is waited for. Raises `InterruptedRunError` if `stop` asks for it.
    """
    if isinstance(config, FinetuneConfig):
        config = {data.task.name: config for data in tasks}
    grid = _Grid(encoder, tasks, config, out, on_stored, stop)
    results: dict[GridRun, RunResult] = {}
    work = sum(grid.work[run.task] for run in plan)
    with GridDisplay(num_runs=len(plan), work=work, shows_runs=shows_runs) as display:
        pending = list(plan)
        while pending:
            waiting = []
            for run in pending:
                result = grid.attempt(run, _rate(run, plan, results), display)
                if result is None:
                    waiting.append(run)
                else:
                    results[run] = result
            if len(waiting) == len(pending):
                display.wait(len(waiting))
                if stop.asked():
                    raise InterruptedRunError(
                        "Stop requested while other workers were running; finished runs are stored"
                    )
                time.sleep(POLL_SECONDS)
            pending = waiting
    return [results[run] for run in plan]


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


class _Grid:
    def __init__(
        self,
        encoder: PretrainedEncoder,
        tasks: Sequence[TaskData],
        configs: Mapping[str, FinetuneConfig],
        out: Path,
        on_stored: Callable[[Path], None],
        stop: Stop,
    ) -> None:
        self.encoder, self.configs, self.out = encoder, configs, out
        self.on_stored, self.stop = on_stored, stop
        self.data, self.work = {}, {}
        for data in tasks:
            name, config = data.task.name, configs[data.task.name]
            self.data[name, "dev"] = data.first(config.max_train_examples)
            self.work[name] = cost_of(data, config)
        self.tokenized: tuple[str, dict[str, Features]] = ("", {})

    def attempt(self, run: GridRun, rate: float | None, display: GridDisplay) -> RunResult | None:
        """Return the result of a run; None if it is in progress elsewhere or has no rate yet."""
        if rate is None:
            return None
        data, config = self.data_of(run), self.configs[run.task]
        settings = settings_for(self.encoder, data, config, learning_rate=rate, seed=run.seed)
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
                    config,
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

    def data_of(self, run: GridRun) -> TaskData:
        key = (run.task, run.split)
        if key not in self.data:
            self.data[key] = choice_data(self.data[run.task, "dev"])
        return self.data[key]

    def features_of(self, run: GridRun) -> dict[str, Features]:
        """Return the same rows tokenised; each task is tokenised once for all its runs."""
        data = self.data[run.task, "dev"]
        if self.tokenized[0] != run.task:
            self.tokenized = (run.task, tokenize_task(self.encoder, data, self.configs[run.task]))
        features = self.tokenized[1]
        if run.split != CHOICE:
            return features
        rows = choice_rows(data.splits["train"])
        return {name: features["train"].take(those) for name, those in rows.items()}
