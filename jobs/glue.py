"""Fine-tune an encoder on the GLUE tasks as a protocol has it; a table with mean and spread.

The encoder is a directory from 'smallbench export', the --run_dir of a pretraining (with the same
scores), or any on the Hugging Face hub. Protocol robust-v1 chooses the learning rate on a tenth of
train, then runs the published seeds; paper runs every rate with every seed and takes the best dev
score. What is set otherwise makes the result unranked: --learning_rate=3e-4 --seeds=1 is a quick
look.

Finished runs are stored in --out and never repeated, so an interrupted command continues where it
was. To share the work, start the same command several times on one --out; or give each machine its
--shard and an --out of its own, then merge. An --out in a bucket is one place for all of them.

show prints the table of stored runs; merge brings those of several folders to --out; submit-file
writes the zip for GLUE's own server to --out; check-file checks such a zip.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smallbench.config import Location, command, option, require
from smallbench.errors import UsageError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.tasks import task_named
from smallbench.jobs.base import Job
from smallbench.sharding import ShardConfig
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig

if TYPE_CHECKING:
    from smallbench.glue.results import RunResult

NEEDED = {
    "measure": ("model", "glue", "out"),
    "show": ("run",),
    "merge": ("run", "out"),
    "submit-file": ("run", "out"),
    "check-file": ("run",),
}
"""The options without which an action cannot start."""


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, TrackerConfig, ShardConfig, FinetuneConfig):
    """Flags of `smallbench glue`."""

    action: Literal["measure", "show", "merge", "submit-file", "check-file"] = option(
        "measure", help="what to do"
    )
    run: tuple[Location, ...] = option(
        (), help="show, merge, submit-file: --out of earlier runs; check-file: a zip"
    )
    model: Location | None = option(
        None, help="export or run directory, URL of an export, or a model's id on the hub"
    )
    glue: Location | None = option(
        None, help="folder in the official TSV layout, hub, or samples: generated stand-ins"
    )
    out: Location | None = option(
        None, help="where results are stored, also a URL, or the zip is written"
    )
    tasks: tuple[str, ...] | None = option(None, help="none: every task that --glue has")
    protocol: Literal["robust-v1", "paper"] = option(
        "robust-v1", help="which runs, and what the score is"
    )
    learning_rate: tuple[float, ...] | None = option(
        None, help="one, or several to choose from; none: the protocol's"
    )
    seeds: tuple[int, ...] | None = option(None, help="none: the protocol's published ones")
    steps: tuple[int, ...] | None = option(
        None, help="kept checkpoints of the run in --model, a table of them; none: the newest"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "seeds", "steps", "tasks"):
            values = getattr(self, name)
            different = values is None or 0 < len(values) == len(set(values))
            require(different, name, values, "at least one, none twice")
        for name in ("learning_rate", "seeds", "steps"):
            values = getattr(self, name)
            require(values is None or min(values) >= 0, name, values, "at least 0")
        for task in self.tasks or ():
            task_named(task)
        for name in NEEDED[self.action]:
            if not getattr(self, name):
                raise UsageError(f"'glue {self.action}' needs --{name}; see smallbench glue --help")
        if len(self.run) > 1 and self.action != "merge":
            raise UsageError(f"'glue {self.action}' takes one --run; merge the folders first")
        if self.action in {"merge", "submit-file"} and "://" in str(self.out):
            raise UsageError(f"'glue {self.action}' writes to a local --out, not to {self.out}")
        if self.steps and self.action != "measure":
            raise UsageError(f"'glue {self.action}' takes no --steps")
        self.part()


def run(options: Options) -> None:
    """Do it, and print the table."""
    from smallbench.glue.protocols import results_table, summarize
    from smallbench.glue.remote import results_folder
    from smallbench.glue.results import merge_runs, read_runs
    from smallbench.glue.submission import check_submission, write_submission
    from smallbench.glue.tracking import show_summary

    if options.steps:
        if not (Path(options.model or "") / "run.json").is_file():
            raise UsageError(
                f"--steps names checkpoints of a run, and --model={options.model} is not the "
                "directory of one"
            )
        measure_steps(options, options.steps)
        return
    if options.action == "check-file":
        print(check_submission(Path(options.run[0])))
        return
    with ExitStack() as stack:
        found = [stack.enter_context(results_folder(url, options)) for url in options.run]
        if options.action == "submit-file":
            assert options.out is not None
            print(write_submission(found[0], Path(options.out), protocol=options.protocol))
            return
        if options.action == "measure":
            runs = measure_model(options)
        elif options.action == "merge":
            assert options.out is not None
            runs = merge_runs(found, Path(options.out))
        else:
            runs = read_runs(found[0])
        if runs:
            summary = summarize(runs, options.protocol)
            print(results_table(summary))
            if options.action == "measure" and options.part()[1] == 1:
                assert options.out is not None
                folder = Path(tempfile.gettempdir() if "://" in options.out else options.out)
                show_summary(options, summary, model=str(options.model), folder=folder)
    if options.action == "measure":
        if options.part()[1] > 1 and "://" in str(options.out):
            print(f"When all shards are done: {command('glue', 'show', options.out)}")
        elif options.part()[1] > 1:
            print("When all shards are done: smallbench glue merge DIR,DIR,… --out=DIR")
        else:
            print(f"Beside the paper's rows: {command('leaderboard', results=options.out)}")


def measure_steps(options: Options, steps: Sequence[int]) -> None:
    """Each kept checkpoint as `measure_model` does, in a folder of its own, and one table."""
    from smallbench.export.huggingface import require_steps
    from smallbench.glue.protocols import summarize
    from smallbench.glue.steps import step_folder, steps_table

    require_steps(Path(str(options.model)), steps)
    summaries = {}
    for step in sorted(steps):
        part = replace(options, steps=None, out=Location(step_folder(str(options.out), step)))
        if runs := measure_model(part, step=step):
            summaries[step] = summarize(runs, options.protocol)
    if summaries:
        print(steps_table(summaries))
        for reason in dict.fromkeys(r for s in summaries.values() for r in s.departures):
            print(f"Unranked: {reason}")


def measure_model(options: Options, *, step: int | None = None) -> list[RunResult]:
    """The runs that the protocol wants, or this shard's; of a run's checkpoint `step`."""
    from smallbench.export.huggingface import as_export, is_run
    from smallbench.glue.encoder import Encoder
    from smallbench.glue.grid import measure
    from smallbench.glue.readers import available_tasks, load_task
    from smallbench.glue.remote import keeper, results_folder
    from smallbench.glue.samples import glue_source
    from smallbench.glue.tasks import task_named
    from smallbench.stop import SignalStop

    assert options.model is not None
    assert options.glue is not None
    assert options.out is not None
    with (
        SignalStop() as stop,
        glue_source(options.glue) as glue,
        as_export(options.model, options, step=step) as model,
        results_folder(options.out, options) as folder,
    ):
        names = options.tasks or available_tasks(glue)
        data = [load_task(task_named(name), glue) for name in names]
        return measure(
            Encoder(
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


JOB = Job(
    name="glue",
    options=Options,
    run=run,
    words=("action", "run"),
    examples=(
        "smallbench glue --model=runs/tiny/export --glue=glue_data --out=glue",
        "smallbench glue --model=runs/tiny/export --glue=glue_data --out=look --tasks=cola"
        " --learning_rate=3e-4 --seeds=1,2",
        "smallbench glue --model=bert-base-uncased --glue=hub --out=shard3 --shard=3/8",
        "smallbench glue --model=s3://lab/bert --glue=hub --out=s3://lab/glue --shard=3/8",
        "smallbench glue --model=runs/tiny --glue=glue_data --out=way --steps=1000,2000",
        "smallbench glue merge shard1,shard2,shard3 --out=glue",
        "smallbench glue show glue --protocol=paper",
        "smallbench glue submit-file --run=glue --out=glue.zip",
    ),
)

if __name__ == "__main__":
    from smallbench.jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
