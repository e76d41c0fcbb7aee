"""Make the project's dashboard in Weights & Biases: the report's charts over all of its runs.

It needs a key ('wandb login') and the network. Each call makes one more saved view of the project.
Training does not need this view, and the view also shows earlier runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallbench.config import option
from smallbench.glue.tasks import TASKS
from smallbench.jobs.base import Job, start
from smallbench.tracking.dashboard import save_dashboard


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench dashboard`."""

    wandb_project: str = option(
        "smallbench", help="project there; the entity is WANDB_ENTITY's, or the key's"
    )


def run(options: Options) -> None:
    """Make it, and say where."""
    print(save_dashboard(options.wandb_project, tasks=list(TASKS)))


JOB = Job("dashboard", Options, run)

if __name__ == "__main__":
    start(JOB)
