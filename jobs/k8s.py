"""Run stages as Kubernetes Jobs: render, submit, show status and logs, cancel.

Stages, in their order: prepare, pretrain (or sweep), export, glue, leaderboard. 'submit all RECIPE'
runs the whole chain.

All of a run lies below --bucket under the run's id, and a run that is submitted again continues
there. Memory, disk, grace and deadline follow from the recipe's plan; values of the recipe are
changed as in 'smallbench pretrain', any other flag of a stage goes into --flags. Set
SMALLBENCH_IMAGE and SMALLBENCH_BUCKET once, and --image and --bucket can be left out.

A sweep is several pretrainings in one Job: --recipes, --learning_rates, or both. An ablation is
--recipes over the seeds of its --flags, a pod for each run; 'smallbench ablate collect' makes its
tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from smallbench.ablation.plan import changes_of, variants_of
from smallbench.cluster.chain import run_chain
from smallbench.cluster.config import (
    CHAIN,
    MAX_SWEEP_CHARACTERS,
    STAGES_OF,
    ClusterConfig,
    RunConfig,
    Stage,
    check_name,
)
from smallbench.cluster.kubectl import Cluster, selector_of
from smallbench.cluster.manifests import INSTANCE, Document, yaml_text
from smallbench.cluster.render import render_stage, warnings
from smallbench.cluster.status import status_text
from smallbench.cluster.work import (
    StageWork,
    ablation_of,
    flag_value,
    flags_by_stage,
    flags_of,
    sizes_of,
    work_of,
)
from smallbench.config import command, option
from smallbench.errors import UsageError
from smallbench.jobs.base import Job, NoOptions, actions, load, recipe_of, start
from smallbench.jobs.resolve import resolve
from smallbench.plugins import registered
from smallbench.train.config import PretrainConfig

MANIFEST = {
    "prepare": ("--corpus=c", "--out=o"),
    "pretrain": ("--data=d", "--run_dir=r"),
    "ablate": ("--data=d", "--glue=hub", "--out=o"),
    "export": ("--run=r", "--out=o"),
    "glue": ("--model=m", "--glue=hub", "--out=o"),
    "leaderboard": (),
}
"""Flags that the manifest of a stage gives its command; the values do not count."""
CORPUS = "corpus"
"""The run's name of the Job that prepares, unless another is given."""


STAGE = "stage of the chain"
CONTEXT = "context of kubectl; none: the current one"


@dataclass(frozen=True, kw_only=True)
class RenderOptions(ClusterConfig):
    """Flags of `smallbench k8s render`."""

    stage: Literal[Stage, "all"] = option(help=f"{STAGE}, or all of them")
    first: Literal["prepare", "pretrain", "export", "glue", "leaderboard"] = option(
        "prepare", help="all: the first stage of the chain; those before it are taken as done"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first != "prepare" and self.stage != "all":
            raise UsageError("--first is for 'all': leave it out")
        if self.stage == "prepare" and self.pods_at_once is not None:
            raise UsageError("shares of 'prepare' wait for each other; give fewer --pods instead")
        if self.stage == "sweep":
            check_name("run", self.run, MAX_SWEEP_CHARACTERS)
        takes = {*CHAIN} if self.stage == "all" else {self.stage}
        for field in fields(self):
            stages = STAGES_OF.get(field.name)
            if stages and getattr(self, field.name) != field.default and not takes & {*stages}:
                raise UsageError(f"--{field.name} is for {' and '.join(stages)}: leave it out")
        if lacking := self._lacking():
            raise UsageError(lacking)

    def _lacking(self) -> str:
        """Return what is wrong with the recipes that are given."""
        match self.stage:
            case "pretrain" | "all" if self.recipe is None:
                return f"'k8s … {self.stage}' needs a RECIPE; 'smallbench recipes' lists them"
            case "sweep" if not (self.recipes or self.learning_rates):
                return "a sweep needs --recipes=…, --learning_rates=…, or both"
            case "sweep" if (self.recipe is None) == (not self.recipes):
                return "a sweep goes over one RECIPE's learning rates, or over --recipes"
            case "ablate" if self.recipe or len(self.recipes) < 2:
                return "an ablation goes over --recipes, two or more; the first is the baseline"
            case "export" | "glue" | "leaderboard" if not (self.run or self.recipe):
                words = "the RECIPE and changes of its pretraining"
                return f"'k8s … {self.stage}' needs --run=ID, or {words}"
        return ""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(RenderOptions):
    """Flags of `smallbench k8s submit`."""

    context: str | None = option(None, help=CONTEXT)
    wait: bool = option(True, help="all: wait for each stage; false: submit the next one due")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.wait and self.stage != "all":
            raise UsageError("--wait is for 'all': leave it out")


@dataclass(frozen=True, kw_only=True)
class CancelOptions(RunConfig):
    """Flags of `smallbench k8s cancel`."""

    stage: Stage | None = option(None, help=f"{STAGE}; none: all of the run")
    context: str | None = option(None, help=CONTEXT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.stage or self.recipe or self.run):
            raise UsageError("'k8s cancel' needs a stage, a RECIPE or --run=ID: it ends their Jobs")


@dataclass(frozen=True, kw_only=True)
class StatusOptions(RunConfig):
    """Flags of `smallbench k8s status`."""

    stage: Literal[Stage, "all"] | None = option(None, help=f"{STAGE}; none: all")
    context: str | None = option(None, help=CONTEXT)


@dataclass(frozen=True, kw_only=True)
class LogsOptions(RunConfig):
    """Flags of `smallbench k8s logs`."""

    stage: Stage = option(help=STAGE)
    context: str | None = option(None, help=CONTEXT)
    follow: bool = option(False, help="continue until the pods end")
    tail: int | None = option(None, help="number of last lines of each pod; none: all")


def render(options: RenderOptions, config: PretrainConfig | None) -> None:
    """Print the manifests of a stage, or of the chain, for 'kubectl apply -f -'.

    Needs kubectl, but no cluster.
    """
    rendered = [documents_of(*each) for each in stages_of(options, config)]
    sys.stdout.write(yaml_text([document for stage in rendered for document in stage]))


def submit(options: SubmitOptions, config: PretrainConfig | None) -> None:
    """Submit a stage, or the chain: each stage when the one before it is complete.

    Ctrl-C leaves the Jobs alone. The same command goes on, from any machine.
    """
    stages = [documents_of(*each) for each in stages_of(options, config)]
    cluster = Cluster(options.namespace, options.context)
    metadata = stages[-1][-1]["metadata"]
    name, run_id = metadata["name"], metadata["labels"][INSTANCE]
    if options.stage == "all":
        if run_chain(cluster, stages, wait=options.wait):
            print(
                "All stages are complete. Next:\n"
                f"  smallbench k8s logs leaderboard --run={run_id}{cluster.flags}"
            )
        else:
            print("The next stage is at work; the same command submits the one after it.")
        return
    cluster.submit(stages[0])
    print(
        f"{name} is submitted. Next:\n  smallbench k8s status --run={run_id}{cluster.flags}\n"
        f"  smallbench k8s logs {options.stage} --run={run_id}{cluster.flags} --follow"
    )
    if options.stage == "ablate":
        place = f"{(options.bucket or '').rstrip('/')}/ablations/{run_id}"
        address = {"endpoint_url": options.endpoint_url} if options.endpoint_url else {}
        line = command("ablate", "collect", place, out=run_id, **address)
        print(f"When its pods have ended:\n  {line}")


def status(options: StatusOptions, config: PretrainConfig | None) -> None:
    """Show Jobs and pods: their state, why one ended, and what to do.

    Without a stage all of a run, its corpus included; without a run everything in the namespace.
    """
    stage = None if options.stage == "all" else options.stage
    run_id = run_of(stage, options, config)
    cluster = Cluster(options.namespace, options.context)
    jobs, pods = cluster.objects(selector_of(stage, run_id))
    is_chain = stage is None and run_id is not None
    if is_chain and jobs and run_id != CORPUS:
        corpus = cluster.objects(selector_of("prepare", CORPUS))
        jobs, pods = [*jobs, *corpus[0]], [*pods, *corpus[1]]
    print(status_text(jobs, pods, is_chain=is_chain) or cluster.no_jobs(selector_of(stage, run_id)))


def logs(options: LogsOptions, config: PretrainConfig | None) -> None:
    """Print the logs of a stage's pods, each line with its pod's name."""
    selector = selector_of(options.stage, run_of(options.stage, options, config))
    cluster = Cluster(options.namespace, options.context)
    cluster.show_logs(selector, follow=options.follow, tail=options.tail)


def cancel(options: CancelOptions, config: PretrainConfig | None) -> None:
    """End Jobs; their pods save, and the run stays in the bucket."""
    selector = selector_of(options.stage, run_of(options.stage, options, config))
    cluster = Cluster(options.namespace, options.context)
    deleted = cluster.cancel(selector)
    print(cluster.no_jobs(selector) if deleted in {"", "No resources found"} else deleted)


def run_of(stage: Stage | None, options: RunConfig, config: PretrainConfig | None) -> str | None:
    """Return the id of the run that the flags name; None if they name none."""
    if config is not None or (stage in {"sweep", "ablate"} and options.recipes):
        return work_for(stage or "pretrain", options, config).run
    return options.run


def stages_of(
    options: RenderOptions, config: PretrainConfig | None
) -> Iterator[tuple[RenderOptions, PretrainConfig | None]]:
    """Yield what each stage of `all` would be given by itself; a single stage as it is."""
    if options.stage != "all":
        yield options, config
        return
    run_id = options.run or work_of("pretrain", replace(options, flags=None), config).run
    flags = flags_by_stage(options.flags)
    defaults = {field.name: field.default for field in fields(options)}
    for stage in CHAIN[CHAIN.index(options.first) :]:
        others = {name: defaults[name] for name, of in STAGES_OF.items() if stage not in of}
        if stage == "prepare":  # one corpus for all runs in the bucket
            others |= {"run": CORPUS, "recipe": None, "pods_at_once": None}
        given: dict[str, Any] = {"run": run_id, "first": "prepare", **others}
        if isinstance(options, SubmitOptions):
            given["wait"] = True
        one = replace(options, stage=stage, flags=flags.get(stage), **given)
        yield one, None if stage == "prepare" else config


def documents_of(options: RenderOptions, config: PretrainConfig | None) -> list[Document]:
    """Return the manifests, after checking that the stage's own command takes its flags."""
    assert options.stage != "all"
    work = work_for(options.stage, options, config, hours=options.hours)
    check_command(work)
    sizes = sizes_of(work, options, config)
    documents = render_stage(work, options, sizes, registered())
    for warning in warnings(work, documents[-1], sizes):
        print(f"warning: {warning}", file=sys.stderr)
    return documents


def work_for(
    stage: Stage, options: RunConfig, config: PretrainConfig | None, hours: float | None = None
) -> StageWork:
    """Return the work of a stage; of an ablation it follows from the flags of its command."""
    if stage != "ablate":
        return work_of(stage, options, config, hours)
    words = [f"--variants={','.join(options.recipes)}", *_with_manifest(stage, flags_of(options))]
    _, given, _ = resolve(load(stage), words, {})
    changes = changes_of(given.set)
    variants = variants_of(given.variants, flops=given.flops, changes=changes)
    return ablation_of(options, [variant.config for variant in variants], len(given.seeds))


def _with_manifest(job: str, flags: Sequence[str]) -> list[str]:
    """Return the flags of a command, and those that its manifest gives it beside them."""
    given = {flag.partition("=")[0] for flag in flags}
    return [*(flag for flag in MANIFEST[job] if flag.partition("=")[0] not in given), *flags]


def check_command(work: StageWork) -> None:
    """Raise what the stage's command would raise on its flags."""
    job = load("pretrain" if work.stage == "sweep" else work.stage)
    given = _with_manifest(job.name, work.flags)
    for row in work.rows or [{"recipe": work.recipe} if job.config else {}]:
        flags = [f"--{key}={flag_value(value)}" for key, value in row.items()]
        try:
            resolve(job, [*given, *flags], {})
        except UsageError as error:
            raise UsageError(_of_command(job.name, str(error))) from None


def _of_command(job: str, message: str) -> str:
    """Return a message on the flags of a stage's command, with the command's name."""
    for field in fields(SubmitOptions):
        if f"unknown --{field.name};" in message:
            return (
                f"--flags has --{field.name}, which is a flag of 'smallbench k8s' and not of "
                f"'smallbench {job}': write it outside --flags"
            )
    return f"flags of 'smallbench {job}': {message}"


ACTIONS = actions(
    "k8s",
    ("render", RenderOptions, render, "stage recipe"),
    ("submit", SubmitOptions, submit, "stage recipe"),
    ("status", StatusOptions, status, "stage recipe"),
    ("logs", LogsOptions, logs, "stage recipe"),
    ("cancel", CancelOptions, cancel, "stage recipe"),
    config=recipe_of,
)
JOB = Job("k8s", NoOptions, None, actions=ACTIONS)

if __name__ == "__main__":
    start(JOB)
