"""Compare recipes: every variant with every seed under one FLOPs budget, then a table.

A variant is a recipe of 'smallbench recipes' or FILE.py:NAME. The first one is the baseline. Each
run trains until --flops are used up, with its schedule fitted to them; --glue also fine-tunes each
run with one learning rate. The table has held-out loss and GLUE mean with 95 % intervals over
seeds, the paired difference to the baseline with its p-value, and the number of seeds that a
difference of that size needs. OUT/ablation.md, OUT/ablation.json and OUT/report.html keep it.

The runs are made one after the other. Ctrl-C or SIGTERM saves and exits with code 75; the same
command continues and ends with the same results. More seeds or variants may be added to a finished
one. --dry_run also prints the planned runs.

Several machines share the runs with --shard=K/N and one --storage (a bucket or a common disk);
'smallbench k8s submit ablate' does that on a cluster. 'smallbench ablate collect STORAGE' then
makes the table, and names the runs that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smallbench.ablation.plan import (
    Design,
    Scoring,
    Variant,
    changes_of,
    design_of,
    flag_of_key,
    variants_of,
    warmup_caution,
)
from smallbench.config import Location, check, check_distinct, command, digest, option, to_dict
from smallbench.errors import DataError, SmallbenchError, UsageError
from smallbench.files import exclusive_lock
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.tasks import task_named
from smallbench.gpus import gpu_of_device
from smallbench.jobs.base import Job, StopOptions, actions, announce, fitted_and_steps, start
from smallbench.sharding import ShardConfig
from smallbench.storage.config import StorageConfig
from smallbench.templates import from_template
from smallbench.train.config import DurabilityConfig, PretrainConfig

if TYPE_CHECKING:
    from smallbench.ablation.driver import Finetuning
    from smallbench.ablation.outcomes import RunOutcome

FEW_STEPS = 100
"""Fewer steps than this are said before they are made."""


@dataclass(frozen=True, kw_only=True)
class Options(DurabilityConfig, ShardConfig, StopOptions):
    """Flags of `smallbench ablate`, which makes runs."""

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
    storage: str | None = option(
        None,
        help="s3://BUCKET/PREFIX or directory that also keeps every run, under VARIANT/seed-N",
        metavar="URL",
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

    def __post_init__(self) -> None:
        DurabilityConfig.__post_init__(self)
        StopOptions.__post_init__(self)
        if len(self.variants) < 2:
            given = " ".join(self.variants) or "none"
            raise UsageError(f"'ablate' needs two variants or more to compare, given: {given}")
        if self.glue is None:
            for name in ("tasks", "learning_rate", "ft_seeds", "epochs", "max_train_examples"):
                if getattr(self, name) != getattr(Options, name):
                    raise UsageError(f"--{name} needs --glue")
        check_distinct(self, "seeds", "ft_seeds", "tasks")
        check(self, "", flops="> 0", learning_rate="> 0")
        for task in self.tasks or ():
            task_named(task)
        self.part()


@dataclass(frozen=True, kw_only=True)
class CollectOptions(StorageConfig):
    """Flags of `smallbench ablate collect`."""

    source: Location = option(help="--storage of the ablation, or its --out")
    out: Path = option(help="where the tables and the records of the runs are kept")


def run(options: Options) -> None:
    """Check everything, make the runs, write the tables."""
    from smallbench.ablation.driver import Training, check_variants, fetch_stored, run_all
    from smallbench.ablation.outcomes import raise_if_failed
    from smallbench.ablation.remote import keep_plan
    from smallbench.data.transfer import local_corpus

    variants, (number, count) = _variants(options), options.part()
    with options.stop() as stop, _finetuning(options) as finetuning:
        data = local_corpus(options.data, options, stop=stop)
        training = Training(
            {variant.name: variant.config for variant in variants}, data, finetuning, options
        )
        design = design_of(variants, options.seeds, flops=options.flops, scoring=training.scoring)
        runs = design.runs(options.out)[number - 1 :: count]
        mine = {run.variant for run in runs}
        check_variants([variant for variant in variants if variant.name in mine], data)
        fetch_stored(runs, training)
        busy = f"another process is at the ablation in {options.out}; wait for it, or end it"
        lock = "lock" if count == 1 else f"lock-{number}-of-{count}"
        with exclusive_lock(options.out / lock, busy):
            keep_plan(design, options.out, options.storage, options)
            print(plan(replace(options, data=Location(str(data)))), flush=True)
            outcomes = run_all(runs, training, announce=announce, stop=stop)
            if count == 1:
                write_tables(design, outcomes, options.out)
                said = {"options": options, "outcomes": outcomes}
                print(from_template("smallbench.jobs", "ablate_next.txt", **said).rstrip())
    raise_if_failed(outcomes)
    if count > 1:
        names = ", ".join(run.name for run in runs) or "none, since there are fewer runs"
        place = options.storage or options.out
        print(f"\nShard {number}/{count} is done: {names}. When all shards are done:\n"
              f"  {command('ablate', 'collect', place, out='ablation')}")  # fmt: skip


def collect(options: CollectOptions) -> None:
    """Make the tables of an ablation whose runs were made by several processes.

    The runs are not repeated, and neither the corpus nor GLUE is needed. If a run has not ended,
    the tables leave it out, it is named, and the exit code is 69: run the command again later.
    """
    from smallbench.ablation.outcomes import raise_if_failed
    from smallbench.ablation.remote import read_ablation, unplanned

    design, outcomes = read_ablation(options.source, options.out, options)
    count = sum(outcome.status != "missing" for outcome in outcomes)
    seeds = ",".join(map(str, design.seeds))
    print(f"{count}/{len(outcomes)} runs have ended: {', '.join(design.variants)}; seeds {seeds}")
    if others := unplanned(options.source, design, options):
        print(f"stored by an earlier command, and not in the tables: {', '.join(others)}")
    for outcome in outcomes:
        if outcome.status == "missing":
            print(f"  {outcome.variant} seed {outcome.seed}: {outcome.reason}")
    write_tables(design, outcomes, options.out)
    raise_if_failed(outcomes)


def write_tables(design: Design, outcomes: Sequence[RunOutcome], out: Path) -> None:
    """Write the results of all runs below `out`, and print the tables."""
    from smallbench.ablation.result_tables import markdown, results_of, write_results

    results = results_of(design, outcomes)
    write_results(results, design.runs(out), out)
    print(f"\n{markdown(results)}")
    print(f"Kept in {out}: ablation.md, ablation.json and report.html")


def _variants(options: Options) -> list[Variant]:
    changes = {"train.device": options.device, **changes_of(options.set)}
    return variants_of(options.variants, flops=options.flops, changes=changes)


@contextmanager
def _finetuning(options: Options) -> Iterator[Finetuning | None]:
    from smallbench.ablation.driver import Finetuning
    from smallbench.glue.samples import glue_source
    from smallbench.glue.task_data import available_tasks, load_task

    if options.glue is None:
        yield None
        return
    config = FinetuneConfig(
        epochs=options.epochs, max_train_examples=options.max_train_examples, device=options.device
    )
    with glue_source(options.glue) as glue:
        names = options.tasks or available_tasks(glue)
        tasks = tuple(load_task(task_named(name), glue) for name in names)
        yield Finetuning(
            Scoring(
                tuple(data.task.name for data in tasks),
                options.learning_rate,
                options.ft_seeds,
                folder=f"glue-{digest({**to_dict(config), 'device': None})[:8]}",
                protocol=from_template(
                    "smallbench.jobs", "ablate_protocol.txt", options=options, tasks=tasks
                ).rstrip(),
            ),
            tasks,
            config,
        )


def plan(options: Options) -> str:
    """The runs that are to be made, with what is known of them beforehand."""
    variants, (number, count) = _variants(options), options.part()
    return from_template(
        "smallbench.jobs",
        "ablate_plan.txt",
        options=options,
        variants=variants,
        number=number,
        count=count,
        extent=_extent,
        missing={
            flag_of_key(key): [variant.name for variant in variants if key not in variant.given]
            for key in changes_of(options.set)
        },
    ).rstrip()


def _extent(options: Options, variant: Variant) -> str:
    """About how many steps and hours the budget is for a variant, or why that is not known."""
    try:
        if "://" in options.data:
            return "steps not estimated, since the corpus is remote"
        config, steps = fitted_and_steps(variant.config, Path(options.data))
        hours = _hours(config)
    except DataError:
        return f"steps not estimated, since {options.data} is not a prepared corpus yet"
    except SmallbenchError as error:
        return f"steps not estimated ({error})"
    few = f"; fewer than {FEW_STEPS} steps teach little" if steps < FEW_STEPS else ""
    caution = warmup_caution(config.schedule.warmup_fraction, steps)
    return f"about {steps:,} step{'s' * (steps != 1)}{hours}{few}{'; ' if caution else ''}{caution}"


def _hours(config: PretrainConfig) -> str:
    """About how long a run takes on this machine's GPU, if the planner knows it."""
    import torch

    from smallbench.ablation.driver import rough_duration
    from smallbench.planning.gpu_plan import make_plan
    from smallbench.train.precision import choose_device

    device = choose_device(config.train.device)
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    whole = None if gpu is None else make_plan(config, gpu, compares=False).whole
    if whole is None:
        return ""
    fast, slow = (rough_duration(3600 * hours) for hours in whole.hours)
    return f" and {fast if fast == slow else f'{fast} to {slow}'} a run"


COLLECT = actions("ablate", ("collect", CollectOptions, collect, "source"))
JOB = Job("ablate", Options, run, words=("variants",), dotted="set", plan=plan, actions=COLLECT)

if __name__ == "__main__":
    start(JOB)
