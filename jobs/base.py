"""The commands and what one consists of: a job module defines `Options`, `run` and `JOB`."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smallbench.config import check, option, require
from smallbench.errors import DataError, UsageError, nearest
from smallbench.stop import SignalStop

if TYPE_CHECKING:
    from smallbench.leaderboard.gold import Gold

# In the order in which a newcomer meets them. A job is one file and one line here.
JOBS = {
    "quickstart": "the whole chain in minutes on two CPU cores, without data or network",
    "plan": "plan a recipe on a GPU: memory, time, energy, cost",
    "prepare": "raw text → clean documents → a tokenizer and token shards",
    "pretrain": "token shards → a trained encoder; run it again to resume exactly",
    "ablate": "variants × seeds under one FLOPs budget → differences with their p-values",
    "enter": "a recipe → an entry of the board: pretrain, export, glue, entry in one command",
    "export": "a run → a directory that from_pretrained loads without custom code",
    "finetune": "one GLUE task with one seed, from any Hugging Face encoder",
    "checkpoints": "list, verify, pull or prune the checkpoints of a run, also in a bucket",
    "glue": "all GLUE tasks and seeds, and a table with mean and spread",
    "leaderboard": "leaderboard entries: make, check, compare and rank them",
    "report": "metrics of one run or several → one HTML page",
    "dashboard": "the same charts as a saved view of a Weights & Biases project",
    "k8s": "stages of a run as Kubernetes Jobs: render, submit, status, logs, cancel",
    "recipes": "the pretraining recipes: size, source, budget, expected score",
    "doctor": "check this machine: packages, GPUs, memory, storage",
}

SIMILAR = 0.75
"""Two words of this similarity (`difflib`, 0 to 1) or more are taken for one word mistyped."""


@dataclass(frozen=True, kw_only=True)
class StopOptions:
    """When a long job must have ended."""

    deadline_hours: float | None = option(
        None,
        help="wall-clock limit for this process in hours; saves a checkpoint and exits with code "
        "75 when reached",
    )
    grace_seconds: float | None = option(
        None, help="seconds between SIGTERM and SIGKILL (Kubernetes: 30); none: no limit"
    )

    def __post_init__(self) -> None:
        check(self, "", deadline_hours="> 0", grace_seconds="> 0")

    def stop(self) -> SignalStop:
        """Return the context that turns signals and the deadline into a request to stop."""
        hours, grace = self.deadline_hours, self.grace_seconds
        return SignalStop(
            max_seconds=math.inf if hours is None else 3600 * hours,
            grace_seconds=math.inf if grace is None else grace,
        )


@dataclass(frozen=True)
class NoOptions:
    """Of a job that only has actions."""


@dataclass(frozen=True)
class Job:
    """One sub-command of `smallbench`; its one-line summary stands in `JOBS`.

    `options` is a frozen dataclass of `config.option(...)` fields: one flag each, read by its
    annotation. `words` names the options that bare words set, in order (`pretrain RECIPE`); the
    last takes all that are left if it is a tuple.

    If `config` is given, it maps the options to a base configuration whose keys the flags
    `--SECTION.KEY=VALUE` override, and `run` receives it as its second argument. `shortcuts` maps
    an option to the configuration key that it sets. In a job without `config`, the option that
    `dotted` names collects the flags `--SECTION.KEY=VALUE`, as words `KEY=VALUE`. `record` names
    the file that keeps all values, as a format of the options; a job that has one prints first what
    differs from its recipe.

    `plan` says in some lines what `run` would do with the same arguments, for `--dry_run`. `doc` is
    the text of `--help`, if it is not that of the module. `actions` are jobs of their own that the
    first word names (`glue show`); a job without `run` does nothing itself.
    """

    name: str
    options: type
    run: Callable[..., None] | None
    words: tuple[str, ...] = ()
    config: Callable[[Any], Any] | None = None
    shortcuts: Mapping[str, str] = field(default_factory=dict)
    dotted: str = ""
    record: str = ""
    plan: Callable[..., str] | None = None
    doc: str = ""
    actions: Mapping[str, Job] = field(default_factory=dict)

    @property
    def examples(self) -> list[str]:
        """Its lines of `templates/examples.txt`; `--help` shows them, and a test parses each."""
        start = f"smallbench {self.name} "
        lines = files(__package__).joinpath("templates/examples.txt").read_text(encoding="utf-8")
        found = [line for line in lines.splitlines() if f"{line} ".startswith(start)]
        others = {} if self.run is None else load(self.name.partition(" ")[0]).actions
        return [line for line in found if line[len(start) :].partition(" ")[0] not in others]


def actions(
    job: str,
    *rows: tuple[str, type, Callable[..., None]] | tuple[str, type, Callable[..., None], str],
    config: Callable[[Any], Any] | None = None,
) -> dict[str, Job]:
    """Return the actions of a job by name; the docstring of each function is its help.

    A row has the name, the options, the function, and the names of `Job.words`.
    """
    return {
        name: Job(f"{job} {name}", options, run, tuple(" ".join(words).split()), config,
                  doc=inspect.getdoc(run) or "")
        for name, options, run, *words in rows
    }  # fmt: skip


def recipe_of(options: Any) -> Any:
    """Return the configuration of `options.recipe`; None if it names none. For `Job.config`."""
    from smallbench.recipes import recipe_config

    return None if options.recipe is None else recipe_config(options.recipe)


def author_of(options: Any, day: str) -> Any:
    """Return what the options say of an entry that no run records: an `Author`.

    Raises `ConfigError` naming the flag whose value the board would reject.
    """
    from smallbench.leaderboard.assemble import EXPECTED, Author
    from smallbench.leaderboard.entry import Links
    from smallbench.leaderboard.folder import is_allowed

    given = vars(options)
    for place, expected in EXPECTED.items():
        name = place.rpartition(".")[2]
        if (value := given.get(name)) is not None:
            require(is_allowed(place, value), f"--{name}", value, expected)
    own = {f.name: given[f.name] for f in fields(Author) if f.name in given}
    return Author(
        **own, date=day, links=Links(**{f.name: given.get(f.name) for f in fields(Links)})
    )


def require_accepted(
    entry: Path, gold: Gold, *, cache: Path | None = None, as_json: bool = False
) -> None:
    """Print the board's checks of an entry's folder; raise `DataError` if they reject it."""
    from smallbench.leaderboard.evaluation import evaluate_beside
    from smallbench.leaderboard.site.build import check_pages
    from smallbench.leaderboard.text import show
    from smallbench.leaderboard.verdict import report_dict, report_text

    evaluation = evaluate_beside(entry, gold, today=date.today(), cache=cache)
    (evaluation,) = check_pages([evaluation])
    print(json.dumps(report_dict(evaluation), indent=2) if as_json else report_text(evaluation))
    if evaluation.rejected:
        checks = [f.check for f in evaluation.findings if f.verdict == "rejected"]
        place = show(str(entry))
        raise DataError(f"{place} is rejected: {', '.join(dict.fromkeys(checks))}")


def fitted_and_steps(config: Any, data: Path) -> tuple[Any, int]:
    """Return the configuration for a prepared corpus, and about how many steps its budget is."""
    from smallbench.planning.planner import Planner
    from smallbench.pretraining.run_data import fit_to_data, open_data

    fitted = fit_to_data(config, open_data(data))
    return fitted, Planner(fitted, device_type="cpu", precision="fp32").num_steps()


def announce(text: str) -> None:
    """Print which stage begins."""
    print(f"\n== {text}", flush=True)


def load(name: str) -> Job:
    """Return the job of that name; its module imports nothing heavy until it runs."""
    job = import_module(f"smallbench.jobs.{name}").JOB
    assert isinstance(job, Job)
    return job


def start(job: Job) -> NoReturn:
    """Run the job with the arguments of this process: `python -m smallbench.jobs.NAME …`."""
    from smallbench.jobs.cli import entry

    entry([job.name, *sys.argv[1:]])


def chosen(job: Job, arguments: Sequence[str]) -> tuple[Job, list[str]]:
    """Return the action that the first word names, or the job itself, and the rest of the line.

    Raises `UsageError` for an unknown action: any word, if the job takes none, else a word that is
    nearly an action's name.
    """
    first, rest = (arguments[0], [*arguments[1:]]) if arguments else ("-", [])
    if first in job.actions:
        return job.actions[first], rest
    is_mistyped = difflib.get_close_matches(first, job.actions, cutoff=SIMILAR)
    if is_mistyped or (job.actions and not job.words and not first.startswith("-")):
        raise UsageError(f"unknown action {first!r} of {job.name!r}; {nearest(first, job.actions)}")
    return job, [*arguments]
