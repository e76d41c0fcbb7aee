"""What a recipe needs of a GPU, before anything is rented: memory, time, energy and money.

Nothing is trained and no GPU is needed. Memory is found by running the recipe's own training step
on tensors without content, for each way to train it: plain, with recomputed activations, and with
DeepSpeed keeping the optimizer or also the parameters in the host's memory. Time is estimated from
what that step computes, as a range with its parts, or taken from a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallbench.config import check, option
from smallbench.errors import ConfigError
from smallbench.gpus import gpu_of
from smallbench.jobs.base import Job, recipe_of, start
from smallbench.recipes import recipe_config
from smallbench.train.config import PretrainConfig

MOST = 1_000_000
"""Hours, more than a century, and their price: more is a slip."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of `smallbench plan`."""

    recipe: str = option(help="name of a recipe ('smallbench recipes' lists them), or FILE.py:NAME")
    gpu: str = option("v100-16gb", help="card to plan for, such as t4-16gb, rtx-4090 or a100-40gb")
    hours: float | None = option(
        None, help="training time in hours; the plan says how many steps fit"
    )
    measured: Path | None = option(
        None,
        help="metrics.jsonl in the directory of a run of this recipe on this card, or the "
        "output of 'python -m benchmarks.gpu'; replaces the estimated speed",
        metavar="FILE",
    )
    price_per_hour: float | None = option(None, help="price of the card per hour, in any currency")
    offload: Literal["auto", "none", "optimizer", "parameters"] | None = option(
        None, help="state that DeepSpeed keeps in host memory, instead of the recipe's choice"
    )
    json: bool = option(False, help="print JSON instead of the table")

    def __post_init__(self) -> None:
        check(self, "", hours=f"(0, {MOST}]", price_per_hour=f"(0, {MOST}]")


def run(options: Options, config: PretrainConfig) -> None:
    """Print the plan."""
    from smallbench.planning.gpu_plan import make_plan
    from smallbench.planning.measured import EXPECTED, measured_tokens_per_second
    from smallbench.planning.planner import Decision
    from smallbench.planning.table import as_table

    if options.measured is not None and not options.measured.exists():
        raise ConfigError(f"--measured={options.measured} does not exist; {EXPECTED}")
    gpu = gpu_of(options.gpu)

    def measured(decision: Decision, precision: str) -> float:
        assert options.measured is not None
        return measured_tokens_per_second(
            options.measured, config, gpu, precision, decision=decision,
            recipe=recipe_config(options.recipe),
        )  # fmt: skip

    plan = make_plan(
        config,
        gpu,
        measured=None if options.measured is None else measured,
        hours=options.hours,
        price_per_hour=options.price_per_hour,
    )
    print(plan.to_json() if options.json else as_table(plan, config))


SHORTCUTS = {"offload": "train.offload"}
JOB = Job("plan", Options, run, words=("recipe",), config=recipe_of, shortcuts=SHORTCUTS)

if __name__ == "__main__":
    start(JOB)
