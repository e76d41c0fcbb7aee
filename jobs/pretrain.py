"""Train an encoder from scratch on a prepared corpus.

A recipe is a complete configuration; every value of it can be overridden as --SECTION.KEY=VALUE.
The run directory holds the checkpoints, metrics.jsonl and the loss curve; with --storage they are
kept in a bucket too, and a machine with an empty disk continues from there. Ctrl-C, SIGTERM or
--deadline_hours saves and ends with exit code 75; the same command then continues, and on the same
device ends with exactly the weights that it would have had. Several GPUs of one machine:
torchrun --nproc_per_node=N -m smallbench.jobs.pretrain RECIPE ….
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallbench.config import Location, command, option
from smallbench.jobs.base import Job, StopOptions, recipe_of, start
from smallbench.tracking.config import TrackerConfig
from smallbench.train.config import AccountingConfig, DurabilityConfig, PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Options(DurabilityConfig, AccountingConfig, TrackerConfig, StopOptions):
    """Flags of `smallbench pretrain`."""

    recipe: str = option(help="name of a recipe ('smallbench recipes' lists them), or FILE.py:NAME")
    data: Location = option(help="directory or s3:// URL that 'smallbench prepare' wrote")
    run_dir: Path = option(help="directory of the run; the same directory continues it")
    max_steps: int | None = option(
        None, help="optimizer steps, instead of the recipe's; the schedule ends there"
    )
    resume: Literal["allow", "must", "never"] = option(
        "allow", help="whether --run_dir may, must or must not have a checkpoint"
    )
    max_hours: float | None = option(
        None,
        help="training hours over all restarts after which the run ends; the schedule's length "
        "with --schedule.along=hours",
    )
    flops: float | None = option(
        None,
        help="floating-point operations of the model over all restarts after which the run ends; "
        "the schedule's length with --schedule.along=flops",
    )
    init_from: str | None = option(
        None,
        help="initial weights: a run, an export or a model on the Hugging Face hub",
        metavar="DIR|ID",
    )
    then_data: Location | None = option(
        None,
        help="corpus with longer rows for a second phase, the last tenth of the run "
        "(--then.begin_fraction)",
    )
    engine: Literal["auto", "torch", "deepspeed"] | None = option(
        None, help="backend of the steps, instead of the recipe's"
    )
    offload: Literal["auto", "none", "optimizer", "parameters"] | None = option(
        None, help="state that DeepSpeed keeps in host memory, instead of the recipe's choice"
    )

    def __post_init__(self) -> None:
        DurabilityConfig.__post_init__(self)
        AccountingConfig.__post_init__(self)
        StopOptions.__post_init__(self)


def run(options: Options, config: PretrainConfig) -> None:
    """Train to the last step, or to the first signal."""
    from smallbench.data.transfer import local_corpus
    from smallbench.pretraining.pretrain import pretrain

    with options.stop() as stop:
        pretrain(
            config,
            data=local_corpus(options.data, options, stop=stop),
            then_data=None
            if options.then_data is None
            else local_corpus(options.then_data, options, stop=stop),
            run_dir=options.run_dir,
            resume=options.resume,
            durability=options,
            accounting=options,
            tracking=options,
            shows_plan=True,
            stop=stop,
        )
    export = options.run_dir / "export"
    print(
        f"Done: {options.run_dir} (loss curve in loss.png). Next:\n"
        f"  {command('export', run=options.run_dir, out=export)}\n"
        f"  {command('glue', model=export, glue='GLUE_DIR', out=options.run_dir / 'glue')}"
    )


SHORTCUTS = {
    **{n: f"train.{n}" for n in ("max_steps", "max_hours", "init_from", "engine", "offload")},
    "flops": "train.max_flops",
}
JOB = Job(
    "pretrain", Options, run, words=("recipe",), config=recipe_of, shortcuts=SHORTCUTS,
    record="{run_dir}/run.json",
)  # fmt: skip

if __name__ == "__main__":
    start(JOB)
