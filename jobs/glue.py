"""Fine-tune an encoder on the GLUE tasks with several seeds; a table with mean and spread.

The encoder is a directory from 'smallbench export', the --run_dir of a pretraining (with the same
scores), or any on the Hugging Face hub. A run is one task with one seed. Finished runs are stored
and never repeated, so an interrupted command continues where it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.base import Job
from smallbench.config import option, require
from smallbench.glue.config import FinetuneConfig
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, TrackerConfig, FinetuneConfig):
    """Flags of `smallbench glue`."""

    model: str = option(
        help="export or run directory, URL of an export, or a model's id on the hub"
    )
    glue: str = option(help="folder in the official TSV layout, or hub")
    out: Path = option(help="where results are stored; finished runs are not repeated")
    tasks: tuple[str, ...] | None = option(None, help="none: every task that --glue has")
    seeds: tuple[int, ...] = option((1, 2, 3), help="one run for each task and seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "tasks"):
            values = getattr(self, name)
            different = values is None or 0 < len(values) == len(set(values))
            require(different, name, values, "at least one, none twice")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "at least 0")


def run(options: Options) -> None:
    """All runs, then the table."""
    from smallbench.export.huggingface import as_export
    from smallbench.glue.encoder import Encoder
    from smallbench.glue.finetune import run_grid
    from smallbench.glue.readers import available_tasks, load_task
    from smallbench.glue.results import results_table, summarize
    from smallbench.glue.tasks import task_named
    from smallbench.glue.tracking import show_summary
    from smallbench.train.stop import StopRequest

    names = options.tasks or available_tasks(options.glue)
    data = [load_task(task_named(name), options.glue) for name in names]
    with StopRequest() as stop, as_export(options.model, options) as model:
        encoder = Encoder(model, random_init=options.random_init)
        results = run_grid(
            encoder, data, options, seeds=options.seeds, out=options.out, should_stop=stop
        )
        summary = summarize(results)
        show_summary(options, summary, model=model, folder=options.out)
    print(results_table(summary))
    print(f"Beside the paper's rows: smallbench leaderboard --results={options.out}")


JOB = Job(
    name="glue",
    options=Options,
    run=run,
    examples=(
        "smallbench glue --model=runs/tiny/export --glue=glue_data --out=glue",
        "smallbench glue --model=runs/tiny/export --glue=hub --out=glue --tasks=cola --seeds=1,2",
    ),
)

if __name__ == "__main__":
    from jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
