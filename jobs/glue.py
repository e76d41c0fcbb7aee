"""Fine-tune an encoder on the GLUE tasks under a protocol; a table with mean and spread.

The encoder is a directory from 'smallbench export', the --run_dir of a pretraining (with the same
scores), or any on the Hugging Face hub. Protocol robust-v1 chooses the learning rate on a tenth of
train, then runs the published seeds; tiny-v1 does so for the track of small budgets; paper runs
every rate with every seed and takes the best dev score. Any other setting makes the result
unranked. A quick test: --learning_rate=3e-4 --seeds=1.

Finished runs are stored in --out and never repeated, so an interrupted command continues where it
was. To share the work, start the same command several times on one --out; or give each machine its
--shard and an --out of its own, then merge. An --out in a bucket is one place for all of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smallbench.config import Location, check_distinct, command, option, require
from smallbench.errors import DataError, UsageError
from smallbench.glue.config import FinetuneConfig, ProtocolName
from smallbench.glue.tasks import task_named
from smallbench.jobs.base import Job, actions, start
from smallbench.sharding import ShardConfig
from smallbench.stop import SignalStop
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import require_library

if TYPE_CHECKING:
    from smallbench.glue.protocols import Summary
    from smallbench.glue.results import RunResult


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, TrackerConfig, ShardConfig, FinetuneConfig):
    """Flags of `smallbench glue`, which measures."""

    model: Location = option(
        help="export or run directory, URL of an export, or a model's id on the hub"
    )
    glue: Location = option(
        help="folder in the official TSV layout, hub, or samples: generated samples"
    )
    out: Location = option(help="folder or URL where results are stored")
    tasks: tuple[str, ...] | None = option(
        None, help="tasks, such as cola,rte; none: every task of the protocol that --glue has"
    )
    protocol: ProtocolName = option(
        "robust-v1", help="rules of the measurement: learning rates, seeds, epochs and score"
    )
    learning_rate: tuple[float, ...] | None = option(
        None, help="peak learning rate, or several to choose from; none: the protocol's"
    )
    seeds: tuple[int, ...] | None = option(None, help="seeds of fine-tuning; none: the protocol's")
    steps: tuple[int, ...] | None = option(
        None, help="steps of kept checkpoints of the run in --model, one row each; none: the newest"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distinct(self, "learning_rate", "seeds", "steps", "tasks")
        for name in ("learning_rate", "seeds", "steps"):
            values = getattr(self, name)
            require(values is None or min(values) >= 0, name, values, "at least 0")
        for task in self.tasks or ():
            task_named(task)
        self.part()


@dataclass(frozen=True, kw_only=True)
class ShowOptions(StorageConfig):
    """Flags of `smallbench glue show`."""

    run: Location = option(help="--out of an earlier 'smallbench glue'", metavar="DIR")
    protocol: ProtocolName = option("robust-v1", help="protocol: how the score is computed")


@dataclass(frozen=True, kw_only=True)
class ZipOptions(ShowOptions):
    """Flags of `smallbench glue submit-file`."""

    out: Path = option(help="zip to write")


@dataclass(frozen=True, kw_only=True)
class MergeOptions(StorageConfig):
    """Flags of `smallbench glue merge`."""

    run: tuple[Location, ...] = option(help="--out of each shard", metavar="DIR,…")
    out: Path = option(help="folder that gets the runs of all")
    protocol: ProtocolName = option("robust-v1", help="protocol: how the score is computed")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Flags of `smallbench glue check-file`."""

    run: Path = option(help="zip to check", metavar="ZIP")


def run(options: Options) -> None:
    """Measure the encoder, or several of its checkpoints, and print the table."""
    from smallbench.glue.tracking import show_summary

    is_shard = options.part()[1] > 1
    if options.tracker != "none" and (options.steps or is_shard):
        what = "--steps" if options.steps else "a shard"
        print(
            f"--tracker={options.tracker} can only show the whole table of a model, so W&B gets "
            f"nothing of {what}",
            file=sys.stderr,
        )
    else:
        require_library(options)
    if options.steps:
        if not (Path(options.model) / "run.json").is_file():
            raise UsageError(
                f"--steps names checkpoints of a run, and --model={options.model} is not the "
                "directory of one"
            )
        measure_steps(options, options.steps)
        summary = None
    else:
        runs, recipe = measure_model(options)
        summary = print_table(runs, options.protocol)
    is_remote, protocol = "://" in options.out, options.protocol
    if is_shard:
        how = f"smallbench glue merge DIR,DIR,… --out=DIR --protocol={protocol}"
        if is_remote:
            how = command("glue", "show", options.out, protocol=protocol)
        print(f"When all shards are done: {how}")
    elif not options.steps:
        if summary is not None:
            folder = Path(tempfile.gettempdir() if is_remote else options.out)
            show_summary(options, summary, recipe=recipe, folder=folder)
        print(f"Beside the paper's rows: {command('leaderboard', results=options.out)}")


def print_table(runs: Sequence[RunResult], protocol: str) -> Summary | None:
    """Print the table of a protocol; return its summary, None without runs."""
    from smallbench.glue.protocols import results_table, summarize

    if not runs:
        return None
    summary = summarize(runs, protocol)
    print(results_table(summary))
    return summary


def print_tables(found: Mapping[int | None, Sequence[RunResult]], protocol: str) -> None:
    """Print the table of the runs at None, and one with a row for each step that has runs."""
    from smallbench.glue.protocols import summarize
    from smallbench.glue.steps import steps_table

    print_table(found.get(None, ()), protocol)
    steps = {
        step: summarize(runs, protocol) for step, runs in found.items() if runs and step is not None
    }
    if steps:
        print(steps_table(steps))
        for reason in dict.fromkeys(r for s in steps.values() for r in s.departures):
            print(f"Unranked: {reason}")


def show_stored(options: ShowOptions) -> None:
    """Print the table of stored runs, or of the steps of 'glue --steps'."""
    from smallbench.glue.results import read_runs
    from smallbench.glue.results_storage import results_folder
    from smallbench.glue.steps import result_folders

    with results_folder(options.run, options) as folder:
        found = {step: read_runs(part) for step, part in result_folders(folder).items()}
        print_tables(found, options.protocol)


def merge(options: MergeOptions) -> None:
    """Copy the runs of several folders to --out and print their table.

    The folders are those of one model's shards, or of one run's with --steps. Two copies of a run
    that differ are refused.
    """
    from contextlib import ExitStack

    from smallbench.glue.results import merge_runs
    from smallbench.glue.results_storage import results_folder
    from smallbench.glue.steps import result_folders, step_folder

    parts: dict[int | None, list[Path]] = {}
    with ExitStack() as stack:
        for url in options.run:
            folder = stack.enter_context(results_folder(url, options))
            for step, part in result_folders(folder).items():
                parts.setdefault(step, []).append(part)
        out, found = options.out, {}
        for step in sorted(parts, key=lambda step: -1 if step is None else step):
            target = out if step is None else Path(step_folder(str(out), step))
            found[step] = merge_runs(parts[step], target)
    print_tables(found, options.protocol)


def write_zip(options: ZipOptions) -> None:
    """Write the zip for GLUE's own server from stored test predictions.

    A task's predictions are those of its best dev run. The zip is checked before it is written.
    """
    from smallbench.glue.results_storage import results_folder
    from smallbench.glue.submission import write_submission

    with results_folder(options.run, options) as folder:
        print(write_submission(folder, options.out, protocol=options.protocol))


def check_zip(options: CheckOptions) -> None:
    """Check a zip for GLUE's server, from any source."""
    from smallbench.glue.submission import check_submission

    print(check_submission(options.run))


def measure_steps(options: Options, steps: Sequence[int]) -> None:
    """Each kept checkpoint as `measure_model` does, in a folder of its own, and one table."""
    from smallbench.checkpoints.store import CheckpointStore
    from smallbench.glue.steps import step_folder

    CheckpointStore(Path(options.model)).require(*steps)
    found: dict[int | None, Sequence[RunResult]] = {}
    for step in sorted(steps):
        part = replace(options, steps=None, out=Location(step_folder(options.out, step)))
        found[step], _ = measure_model(part, step=step)
    print_tables(found, options.protocol)


def measure_model(
    options: Options, *, step: int | None = None
) -> tuple[list[RunResult], str | None]:
    """The runs that the protocol wants, or this shard's, and the recipe, if the model names one.

    Of a run, its checkpoint `step`, or the newest.
    """
    from smallbench.export.huggingface import as_export, is_run
    from smallbench.glue.grid import measure
    from smallbench.glue.pretrained import PretrainedEncoder
    from smallbench.glue.protocols import protocol_named
    from smallbench.glue.results_storage import keeper, results_folder
    from smallbench.glue.samples import glue_source
    from smallbench.glue.task_data import available_tasks, load_task
    from smallbench.glue.tracking import recipe_of

    with (
        SignalStop() as stop,
        glue_source(options.glue) as glue,
        as_export(options.model, options, step=step) as model,
        results_folder(options.out, options) as folder,
    ):
        known = protocol_named(options.protocol).tasks
        names = options.tasks or [name for name in available_tasks(glue) if name in known]
        if not names:
            raise DataError(
                f"{options.glue} has no task of protocol {options.protocol}; expected one of: "
                f"{', '.join(known)}"
            )
        data = [load_task(task_named(name), glue) for name in names]
        runs = measure(
            PretrainedEncoder(
                model,
                random_init=options.random_init,
                # A run's code is its user's own, who named the run.
                trust_remote_code=options.trust_remote_code or is_run(options.model),
            ),
            data,
            options,
            protocol=options.protocol,
            learning_rates=options.learning_rate,
            seeds=options.seeds,
            shard=options.part(),
            out=folder,
            on_stored=keeper(options.out, folder, options),
            stop=stop,
        )
        return runs, recipe_of(model)


MEASURE = Job("glue", Options, run, doc=__doc__)
ACTIONS = {
    "measure": MEASURE,
    **actions(
        "glue",
        ("show", ShowOptions, show_stored, "run"),
        ("merge", MergeOptions, merge, "run"),
        ("submit-file", ZipOptions, write_zip, "run"),
        ("check-file", CheckOptions, check_zip, "run"),
    ),
}
JOB = replace(MEASURE, actions=ACTIONS)

if __name__ == "__main__":
    start(JOB)
