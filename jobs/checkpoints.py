"""Look after the checkpoints of a run, in its directory or in a bucket.

Without an action, the list. Each action has a page of its own. All actions are safe while the run
trains; prune is refused then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smallbench.checkpoints.retention import Retention
from smallbench.config import Location, check, command, option
from smallbench.jobs.base import Job, actions, start
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class ListOptions(StorageConfig):
    """Flags of `smallbench checkpoints`."""

    run: Location = option(help="--run_dir of a pretraining, or its URL: STORAGE/NAME")


def list_stored(options: ListOptions) -> None:
    """List the checkpoints of a run, oldest first, with their size and tokens."""
    from smallbench.checkpoints.inspection import checkpoints_table, open_run

    print(checkpoints_table(open_run(options.run, options)))


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ListOptions):
    """Flags of `smallbench checkpoints verify`."""

    step: int | None = option(None, help="this step's checkpoint; none: all")


def verify(options: VerifyOptions) -> None:
    """Read every file and compare it with its SHA-256.

    Ends with exit code 65 if one is damaged.
    """
    from smallbench.checkpoints import inspection

    print(inspection.verify(inspection.open_run(options.run, options), step=options.step))


@dataclass(frozen=True, kw_only=True)
class PullOptions(ListOptions):
    """Flags of `smallbench checkpoints pull`."""

    out: Path = option(help="run directory to write, which export and pretrain take")
    step: int | None = option(None, help="this step's checkpoint; none: the newest")


def pull(options: PullOptions) -> None:
    """Bring a checkpoint to a run directory on this machine."""
    from smallbench.checkpoints import inspection

    place = inspection.open_run(options.run, options)
    step = inspection.pull(place, options.out, step=options.step)
    print(
        f"Step {step:,} is in {options.out}. Next:\n"
        f"  {command('export', run=options.out, out=f'{options.out}/export')}"
    )


@dataclass(frozen=True, kw_only=True)
class PruneOptions(ListOptions):
    """Flags of `smallbench checkpoints prune`."""

    keep_last: int = option(2, help="newest checkpoints to keep")
    keep_every_steps: int | None = option(None, help="also keep those at this interval")
    milestones: tuple[int, ...] = option((), help="also keep those of these steps")

    def __post_init__(self) -> None:
        check(self, "", keep_last=">= 2", keep_every_steps=">= 1")


def prune(options: PruneOptions) -> None:
    """Delete all checkpoints but those that the flags keep; refused while the run trains."""
    from smallbench.checkpoints import inspection

    kept = Retention(options.keep_last, options.keep_every_steps, options.milestones)
    deleted = inspection.prune(inspection.open_run(options.run, options), kept)
    print(f"deleted: {', '.join(f'step {step:,}' for step in deleted) or 'nothing'}")


ACTIONS = actions(
    "checkpoints",
    ("list", ListOptions, list_stored, "run"),
    ("verify", VerifyOptions, verify, "run"),
    ("pull", PullOptions, pull, "run"),
    ("prune", PruneOptions, prune, "run"),
)
JOB = Job("checkpoints", ListOptions, list_stored, actions=ACTIONS)

if __name__ == "__main__":
    start(JOB)
