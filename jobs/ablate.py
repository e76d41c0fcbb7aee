"""Compare recipes: every variant with every seed under one FLOPs budget, then a table.

A variant is a recipe of 'smallbench recipes' or FILE.py:NAME. The first one is the baseline. Each
run trains until --flops are used up, with its schedule fitted to them; --glue also fine-tunes each
run with one learning rate. The table has held-out loss and GLUE mean with 95 % intervals over
seeds, the paired difference to the baseline with its p-value, and the number of seeds that a
difference of that size needs. OUT/ablation.md, OUT/ablation.json and OUT/report.html keep it.

The runs are made one after the other on this machine; a sweep on a cluster is not supported yet.
Ctrl-C or SIGTERM saves and exits with code 75; the same command continues and ends with the same
results. More seeds or variants may be added to a finished one. --dry_run also prints the planned
runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smallbench.config import Location, option, require
from smallbench.errors import DataError, SmallbenchError, UsageError
from smallbench.glue.tasks import task_named
from smallbench.jobs.base import Job
from smallbench.storage.config import StorageConfig

if TYPE_CHECKING:
    from smallbench.ablation.driver import Finetuning
    from smallbench.ablation.plan import Variant

FEW_STEPS = 100
"""Fewer steps than this are said before they are made."""


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig):
    """Flags of `smallbench ablate`."""

    variants: tuple[str, ...] = option(
        help="two recipes or more, each a name or FILE.py:NAME; the first is the baseline",
        metavar="RECIPE[,RECIPE…]",
    )
    data: Location = option(help="directory or s3:// URL that 'smallbench prepare' wrote")
    flops: float = option(
        help="floating-point operations of the model for each pretraining, over all restarts"
    )
    out: Path = option(help="where runs and tables are kept; the same directory continues them")
    seeds: tuple[int, ...] = option(
        (1, 2, 3), help="seeds of the pretraining: weights, data order, masks, dropout"
    )
    set: tuple[str, ...] = option(
        (),
        help="configuration keys of all variants that have them; also as --SECTION.KEY=VALUE",
        metavar="KEY=VALUE[,…]",
    )
    glue: Location | None = option(
        None,
        help="folder in the official TSV layout, hub, or samples: generated stand-ins; none: only "
        "held-out losses",
    )
    tasks: tuple[str, ...] | None = option(
        None, help="GLUE tasks to score; none: every task that --glue has"
    )
    learning_rate: float = option(3e-4, help="learning rate of the fine-tuning, for all variants")
    ft_seeds: tuple[int, ...] = option((1,), help="seeds of the fine-tuning, for each pretraining")
    epochs: int | None = option(
        None, help="epochs of the fine-tuning; none: 3 for large tasks, else 10", least=1
    )
    max_train_examples: int | None = option(
        None, help="fine-tune on the first rows of train only", least=1
    )
    device: str = option("auto", help="auto, cpu or cuda")
    deadline_hours: float | None = option(
        None,
        help="wall-clock limit for this process in hours; saves a checkpoint and exits with code "
        "75 when reached",
    )

    def __post_init__(self) -> None:
        if len(self.variants) < 2:
            given = " ".join(self.variants) or "none"
            raise UsageError(f"'ablate' needs two variants or more to compare, given: {given}")
        for name in ("seeds", "ft_seeds", "tasks"):
            values = getattr(self, name)
            different = values is None or 0 < len(values) == len({*values})
            require(different, name, values, "at least one, none twice")
        for name in ("flops", "deadline_hours", "learning_rate"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "over 0")
        for name in ("epochs", "max_train_examples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1, or none")
        for task in self.tasks or ():
            task_named(task)


def run(options: Options) -> None:
    """Check everything, make the runs, write the tables."""
    from smallbench.ablation.driver import check_stored, check_variants, raise_if_failed, run_all
    from smallbench.ablation.plan import planned_runs
    from smallbench.ablation.table import markdown, results_of, write_results
    from smallbench.data.transfer import local_corpus
    from smallbench.files import exclusive_lock
    from smallbench.stop import SignalStop

    variants = _variants(options)
    hours = options.deadline_hours
    with (
        SignalStop(max_seconds=math.inf if hours is None else 3600 * hours) as stop,
        _finetuning(options) as finetuning,
    ):
        data = local_corpus(options.data, options, stop=stop)
        runs = planned_runs(variants, options.seeds, options.out)
        check_variants(variants, data)
        check_stored(runs, data)
        busy = f"another process is at the ablation in {options.out}; wait for it, or end it"
        with exclusive_lock(options.out / "lock", busy):
            print(plan(options), flush=True)
            outcomes = run_all(
                runs,
                data=data,
                finetuning=finetuning,
                announce=lambda text: print(f"\n== {text}", flush=True),
                stop=stop,
            )
            results = results_of(
                variants,
                options.seeds,
                outcomes,
                flops=options.flops,
                protocol=_protocol(options, finetuning),
            )
            write_results(results, runs, options.out)
    print(f"\n{markdown(results)}")
    print(f"Kept in {options.out}: ablation.md, ablation.json and report.html")
    raise_if_failed(outcomes)


def _variants(options: Options) -> list[Variant]:
    from smallbench.ablation.plan import changes_of, variants_of

    changes = {"train.device": options.device, **changes_of(options.set)}
    return variants_of(options.variants, flops=options.flops, changes=changes)


@contextmanager
def _finetuning(options: Options) -> Iterator[Finetuning | None]:
    from smallbench.ablation.driver import Finetuning
    from smallbench.glue.config import FinetuneConfig
    from smallbench.glue.readers import available_tasks, load_task
    from smallbench.glue.samples import glue_source

    if options.glue is None:
        yield None
        return
    with glue_source(options.glue) as glue:
        names = options.tasks or available_tasks(glue)
        yield Finetuning(
            tuple(load_task(task_named(name), glue) for name in names),
            options.learning_rate,
            options.ft_seeds,
            FinetuneConfig(
                epochs=options.epochs,
                max_train_examples=options.max_train_examples,
                device=options.device,
            ),
        )


def _protocol(options: Options, finetuning: Finetuning | None) -> str:
    """How GLUE was scored, in a sentence."""
    if finetuning is None:
        return ""
    seeds = ", ".join(map(str, options.ft_seeds))
    names = ", ".join(data.task.title for data in finetuning.tasks)
    said = (
        f"GLUE mean: dev scores of {names}, fine-tuned with the learning rate "
        f"{options.learning_rate:g} and seeds {seeds}, means of equal weight"
    )
    if options.max_train_examples is not None:
        said += f", on the first {options.max_train_examples:,} rows of train"
    said += ". This is not a ranked protocol"
    if any(data.is_sample for data in finetuning.tasks):
        said += ". *Sample*: generated stand-ins, which say nothing about GLUE"
    return said


def plan(options: Options) -> str:
    """The runs that are to be made, with what is known of them beforehand."""
    variants = _variants(options)
    num_runs = len(variants) * len(options.seeds)
    lines = [
        f"{num_runs} pretrainings ({len(variants)} variants × {len(options.seeds)} seeds) of "
        f"{options.flops:g} FLOPs each, {num_runs * options.flops:g} in all, one after the other"
    ]
    for variant in variants:
        lines.append(
            f"{variant.name}: seeds {','.join(map(str, options.seeds))}, "
            f"{1 / len(variants):.0%} of the FLOPs, {_steps(options, variant)}"
        )
    for word in options.set:
        key = word.partition("=")[0]
        without = [variant.name for variant in variants if key not in variant.given]
        if without:
            lines.append(f"--set={word} is not a key of {', '.join(without)}")
    if options.glue is not None:
        tasks = "every task" if options.tasks is None else f"{len(options.tasks)} tasks"
        lines.append(
            f"after each, fine-tuning of {tasks} × {len(options.ft_seeds)} seeds, which is not in "
            "the budget"
        )
    return "\n".join(lines)


def _steps(options: Options, variant: Variant) -> str:
    """About how many steps the budget is for a variant, or why that is not known."""
    from smallbench.planning.planner import Planner
    from smallbench.pretraining.data import fit_to_data, open_data

    try:
        if "://" in options.data:
            return "steps not estimated, since the corpus is remote"
        config = fit_to_data(variant.config, open_data(Path(options.data)))
        planner = Planner(config, device_type="cpu", precision="fp32")
        steps = planner.num_steps(options.flops)
    except DataError:
        return f"steps not estimated, since {options.data} is not a prepared corpus yet"
    except SmallbenchError as error:
        return f"steps not estimated ({error})"
    few = f"; fewer than {FEW_STEPS} steps teach little" if steps < FEW_STEPS else ""
    return f"about {steps:,} steps{few}"


JOB = Job(
    name="ablate",
    options=Options,
    run=run,
    words=("variants",),
    dotted="set",
    plan=plan,
    examples=(
        "smallbench ablate bert-tiny deberta-tiny --data=corpus --flops=2e13 --out=ablation",
        "smallbench ablate bert-tiny my_idea.py:gated_bert_tiny --data=corpus --glue=GLUE"
        " --flops=1e14 --seeds=1,2,3 --out=ablation",
        "smallbench ablate bert-tiny deberta-tiny --data=corpus --flops=2e13 --out=ablation"
        " --train.global_batch_size=64 --optim.learning_rate=1e-3",
    ),
)

if __name__ == "__main__":
    from smallbench.jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
