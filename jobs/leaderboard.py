"""`smallbench leaderboard`: the paper's rows and stored results as one Markdown table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.base import Job
from smallbench.config import option


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench leaderboard`."""

    results: tuple[Path, ...] = option(
        (),
        help="folders with stored runs: each the --out of a glue or finetune job",
        metavar="DIR[,DIR…]",
    )
    out: Path | None = option(
        None, help="also write the table to this Markdown file", metavar="FILE.md"
    )


def run(options: Options) -> None:
    """Print the table, and write it where `--out` says."""
    from smallbench import files
    from smallbench.glue.results import read_runs
    from smallbench.leaderboard.table import leaderboard_rows, render_markdown

    runs = [run for folder in options.results for run in read_runs(folder)]
    table = render_markdown(leaderboard_rows(runs))
    if options.out is not None:
        files.write_text(options.out, table)
    sys.stdout.write(table)


JOB = Job(
    name="leaderboard",
    options=Options,
    run=run,
    examples=(
        "smallbench leaderboard",
        "smallbench leaderboard --results=results/bert-small,results/mine --out=table.md",
    ),
)


if __name__ == "__main__":
    from jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
