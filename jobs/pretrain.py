"""Train an encoder from scratch on a prepared corpus.

A recipe is a complete configuration; every value of it can be overridden as --SECTION.KEY=VALUE.
The run directory holds the checkpoints, metrics.jsonl and the loss curve. Ctrl-C or SIGTERM saves
and ends with exit code 75; the same command then continues, and on the same machine ends with
exactly the weights that it would have had.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.base import Job
from smallbench.config import option
from smallbench.recipes import RECIPES
from smallbench.train.config import PretrainConfig


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench pretrain`."""

    recipe: str = option(help="name of a recipe; 'smallbench recipes' lists them")
    data: Path = option(help="directory that 'smallbench prepare' wrote")
    run_dir: Path = option(help="where the run is kept; the same directory continues it")
    max_steps: int | None = option(
        None, help="optimizer steps, instead of the recipe's; the schedule ends there"
    )
    resume: Literal["allow", "must", "never"] = option(
        "allow", help="whether a checkpoint in --run_dir may, must or must not be there"
    )


def config(options: Options) -> PretrainConfig:
    """The recipe's configuration."""
    base: PretrainConfig = RECIPES[options.recipe]()
    return base


def run(options: Options, config: PretrainConfig) -> None:
    """Train to the last step, or to the first signal."""
    from smallbench.train.pretrain import pretrain
    from smallbench.train.stop import StopRequest

    with StopRequest() as stop:
        pretrain(
            config,
            data=options.data,
            run_dir=options.run_dir,
            resume=options.resume,
            should_stop=stop,
        )
    print(
        f"Done: {options.run_dir} (loss curve in loss.png). Next:\n"
        f"  smallbench export --run={options.run_dir} --out={options.run_dir}/export\n"
        f"  smallbench glue --model={options.run_dir}/export --glue=GLUE_DIR "
        f"--out={options.run_dir}/glue"
    )


JOB = Job(
    name="pretrain",
    options=Options,
    run=run,
    word="recipe",
    config=config,
    shortcuts={"max_steps": "train.max_steps"},
    examples=(
        "smallbench pretrain bert-tiny --data=corpus --run_dir=runs/tiny",
        "smallbench pretrain bert-small --data=corpus --run_dir=runs/bert --max_steps=100000",
        "smallbench pretrain bert-tiny --data=corpus --run_dir=runs/lr --optim.learning_rate=5e-4",
    ),
)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main([JOB.name, *sys.argv[1:]]))
