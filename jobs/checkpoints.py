"""Look after the checkpoints of a run, in its directory or in a bucket.

list shows them; verify reads every file and compares it with its SHA-256; pull brings the newest
(or --step) to --out, a run directory that export and pretrain take; prune deletes all but what the
flags keep. verify ends with exit code 65 where one is damaged. Nothing here disturbs a run that is
going on; prune refuses while one is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallbench.config import Location, command, option, require
from smallbench.errors import UsageError
from smallbench.jobs.base import Job
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig):
    """Flags of `smallbench checkpoints`."""

    action: Literal["list", "verify", "pull", "prune"] = option(help="action")
    run: Location = option(help="--run_dir of a pretraining, or its URL: STORAGE/NAME")
    out: Path | None = option(None, help="pull: run directory to bring the checkpoint to")
    step: int | None = option(None, help="pull, verify: this step's; none: the newest, or all")
    keep_last: int = option(2, help="prune: newest checkpoints to keep")
    keep_every_steps: int | None = option(None, help="prune: also keep those at this interval")
    milestones: tuple[int, ...] = option((), help="prune: also keep those of these steps")

    def __post_init__(self) -> None:
        require(self.keep_last >= 2, "keep_last", self.keep_last, "at least 2")
        every = self.keep_every_steps
        require(every is None or every >= 1, "keep_every_steps", every, "at least 1, or none")
        if (self.action == "pull") != (self.out is not None):
            raise UsageError("--out is needed by 'checkpoints pull', and by nothing else")


def run(options: Options) -> None:
    """Run the action and print its result."""
    from smallbench.checkpoints.inspection import checkpoints_table, open_run, prune, pull, verify
    from smallbench.checkpoints.retention import Retention

    place = open_run(options.run, options)
    if options.action == "list":
        print(checkpoints_table(place))
    elif options.action == "verify":
        print(verify(place, step=options.step))
    elif options.action == "pull":
        assert options.out is not None
        step = pull(place, options.out, step=options.step)
        print(
            f"Step {step:,} is in {options.out}. Next:\n"
            f"  {command('export', run=options.out, out=f'{options.out}/export')}"
        )
    else:
        deleted = prune(
            place,
            Retention(
                keep_last=options.keep_last,
                keep_every_steps=options.keep_every_steps,
                milestones=options.milestones,
            ),
        )
        print(f"deleted: {', '.join(f'step {step:,}' for step in deleted) or 'nothing'}")


JOB = Job(
    name="checkpoints",
    options=Options,
    run=run,
    words=("action", "run"),
    examples=(
        "smallbench checkpoints list s3://lab/runs/bert-small",
        "smallbench checkpoints verify runs/bert-small",
        "smallbench checkpoints pull s3://lab/runs/bert-small --out=runs/bert-small",
        "smallbench checkpoints prune s3://lab/runs/bert-small --keep_every_steps=100000",
    ),
)

if __name__ == "__main__":
    from smallbench.jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
