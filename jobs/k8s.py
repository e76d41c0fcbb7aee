"""Jobs for a cluster: render a stage of a run as manifests, submit it, look at it, end it.

Stages, in their order: prepare, pretrain (or sweep), export, glue, leaderboard. render needs no
cluster and prints what 'kubectl apply -f -' takes; submit applies it, status, logs and cancel ask
about it. All of a run lies below --bucket under the run's id, and a run that is submitted again
continues there. Memory, disk, grace and deadline follow from the recipe's plan; values of the
recipe are changed as in 'smallbench pretrain', any other flag of a stage goes into --flags. Set
SMALLBENCH_IMAGE and SMALLBENCH_BUCKET once, and --image and --bucket can be left out.

A sweep is several pretrainings in one Job: --recipes, --learning_rates, or both.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from jobs.base import Job
from smallbench.cluster.config import ClusterConfig, Stage
from smallbench.config import differing_keys, option, override_all, to_dict
from smallbench.errors import UsageError
from smallbench.recipes import RECIPES
from smallbench.train.config import PretrainConfig, resumable_keys

if TYPE_CHECKING:
    from smallbench.cluster.manifests import Document
    from smallbench.cluster.render import Work
    from smallbench.cluster.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Options(ClusterConfig):
    """Flags of `smallbench k8s`."""

    action: Literal["render", "submit", "status", "logs", "cancel"] = option(help="what to do")
    stage: Stage | None = option(None, help="of the chain; none, for status and cancel: all")
    recipe: str | None = option(None, help="name of a recipe; 'smallbench recipes' lists them")
    recipes: tuple[str, ...] = option((), help="sweep: over these")
    learning_rates: tuple[float, ...] = option((), help="sweep: over these")
    flags: str | None = option(
        None, help="further flags of the stage's own command, in quotes", metavar="'--FLAG=VALUE …'"
    )
    namespace: str = option("smallbench", help="of the cluster")
    context: str | None = option(None, help="kubectl's; none: the current one")
    follow: bool = option(False, help="logs: go on until the pods end")
    tail: int | None = option(None, help="logs: only so many last lines of each pod")

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_stage = self.action in {"render", "submit", "logs"}
        if needs_stage and self.stage is None:
            raise UsageError(f"'k8s {self.action}' needs a stage; see smallbench k8s --help")
        if (self.recipes or self.learning_rates) and self.stage != "sweep":
            raise UsageError("--recipes and --learning_rates make a sweep: smallbench k8s … sweep")
        if self.action in {"render", "submit"}:
            self._check_recipe()

    def _check_recipe(self) -> None:
        if self.stage == "pretrain" and self.recipe is None:
            raise UsageError("'k8s … pretrain' needs a RECIPE; 'smallbench recipes' lists them")
        if self.stage == "sweep":
            if not self.recipes and not self.learning_rates:
                raise UsageError("a sweep needs --recipes=…, --learning_rates=…, or both")
            if (self.recipe is None) == (not self.recipes):
                raise UsageError("a sweep goes over one RECIPE's learning rates, or over --recipes")
        elif self.stage in {"export", "glue", "leaderboard"} and not (self.run or self.recipe):
            raise UsageError(
                f"'k8s … {self.stage}' needs --run=ID, or the RECIPE and changes of its pretraining"
            )


def config(options: Options) -> PretrainConfig | None:
    """The recipe's configuration, where there is one."""
    return None if options.recipe is None else RECIPES[options.recipe]()


def run(options: Options, config: PretrainConfig | None) -> None:
    """Do it, and print what came of it."""
    from smallbench.cluster.kubectl import Cluster, selector_of
    from smallbench.cluster.manifests import as_yaml
    from smallbench.cluster.status import status_text

    if options.action == "render":
        sys.stdout.write(as_yaml(documents_of(options, config)))
        return
    cluster = Cluster(options.namespace, options.context)
    if options.action == "submit":
        documents = documents_of(options, config)
        cluster.submit(documents)
        name, labels = (documents[-1]["metadata"][key] for key in ("name", "labels"))
        run_id = labels["app.kubernetes.io/instance"]
        print(
            f"{name} is submitted. Next:\n  smallbench k8s status --run={run_id}\n"
            f"  smallbench k8s logs {options.stage} --run={run_id} --follow"
        )
        return
    named = options.run or options.recipe
    selector = selector_of(options.stage, work_of(options, config).run if named else None)
    if options.action == "status":
        print(status_text(*cluster.objects(selector)))
    elif options.action == "logs":
        cluster.show_logs(selector, follow=options.follow, tail=options.tail)
    else:
        print(cluster.cancel(selector) or "nothing is there")


def documents_of(options: Options, config: PretrainConfig | None) -> list[Document]:
    """The manifests, after a look whether the stage's own command would take its flags."""
    from smallbench.cluster.render import render

    work = work_of(options, config)
    check_command(work)
    sizes = sizes_of(options, work, config)
    return render(work, options, namespace=options.namespace, sizes=sizes)


def work_of(options: Options, config: PretrainConfig | None) -> Work:
    """What the stage shall do."""
    from smallbench.cluster.render import Work, run_id

    changes: dict[str, Any] = {}
    if config is not None:
        base = to_dict(RECIPES[config.recipe]())
        changes = {key: new for key, (_, new) in differing_keys(base, to_dict(config)).items()}
    flags = shlex.split(options.flags or "")
    stage = options.stage or "pretrain"
    rows: list[dict[str, Any]] = []
    if stage == "sweep":
        hours = {} if options.hours is None else {"max_hours": options.hours}
        rates = [{"optim.learning_rate": rate} for rate in options.learning_rates] or [{}]
        rows = [
            {"recipe": recipe, **changes, **rate, **hours}
            for recipe, rate in product(options.recipes or (options.recipe,), rates)
        ]
    if stage == "pretrain":
        flags += [f"--{key}={_as_flag(value)}" for key, value in changes.items()]
        flags += [] if options.hours is None else [f"--max_hours={options.hours}"]
    if rows:
        name = run_id("sweep", rows)
    else:
        # What may change when a run continues makes no other run.
        may_change = resumable_keys(config) if config is not None else ()
        learned = {key: value for key, value in changes.items() if key not in may_change}
        name = run_id(options.recipe or "corpus", learned)
    return Work(stage=stage, run=options.run or name, recipe=options.recipe, flags=flags, rows=rows)


def _as_flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def check_command(work: Work) -> None:
    """Raise what the stage's command would raise on its flags, before a pod does so in an hour."""
    from jobs.cli import load, resolve

    job = load("pretrain" if work.stage == "sweep" else work.stage)
    rows: Sequence[Mapping[str, Any]] = work.rows or [{"recipe": work.recipe} if job.config else {}]
    standing = {
        "prepare": ["--corpus=c", "--out=o"],
        "pretrain": ["--data=d", "--run_dir=r"],
        "export": ["--run=r", "--out=o"],
        "glue": ["--model=m", "--glue=hub", "--out=o"],
        "leaderboard": [],
    }[job.name]
    given = {flag.partition("=")[0] for flag in work.flags}
    standing = [flag for flag in standing if flag.partition("=")[0] not in given]
    for row in rows:
        flags = [f"--{key}={_as_flag(value)}" for key, value in row.items()]
        resolve(job, [*standing, *work.flags, *flags], {})


def sizes_of(options: Options, work: Work, config: PretrainConfig | None) -> Sizes | None:
    """What the planner says of each recipe; None where no recipe is named."""
    from smallbench.cluster.sizes import GLUE_GIB, needs_of, sizes_for

    configs = [override_all(RECIPES[row["recipe"]](), _keys_of(row)) for row in work.rows]
    if config is not None and not configs:
        configs = [config]
    if not configs or work.stage in {"prepare", "leaderboard"}:
        return None
    # Learning rates do not change a size.
    different = {repr((c.recipe, c.model, c.train, c.objective)): c for c in configs}
    return sizes_for(
        [needs_of(c, options.gpu) for c in different.values()],
        has_gpu=options.gpu != "none",
        data_gib=options.corpus_gib if work.stage in {"pretrain", "sweep"} else GLUE_GIB,
        hours=options.hours,
        grace_seconds=options.grace_seconds,
    )


def _keys_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "." in key}


JOB = Job(
    name="k8s",
    options=Options,
    run=run,
    words=("action", "stage", "recipe"),
    config=config,
    prints_config=False,
    examples=(
        "smallbench k8s render pretrain bert-small --image=registry.example/smallbench@sha256:"
        f"{'0123456789abcdef' * 4} --bucket=s3://lab",
        "smallbench k8s submit prepare --pods=16 --flags='--tokenizer=bpe --vocab_size=50265'",
        "smallbench k8s submit sweep bert-small --learning_rates=3e-4,5e-4,1e-3"
        " --components=spot --queue=research",
        "smallbench k8s status --run=bert-small",
        "smallbench k8s logs pretrain --run=bert-small --follow",
        "smallbench k8s cancel pretrain bert-small",
    ),
)

if __name__ == "__main__":
    from jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
