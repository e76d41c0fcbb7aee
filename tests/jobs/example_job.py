"""A job of its own, so that tests do not depend on what another job calls its flags."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smallbench.config import check, check_distinct, option, require
from smallbench.errors import (
    ConfigError,
)
from smallbench.jobs import cli
from smallbench.jobs.base import Job


@dataclass(frozen=True)
class Optim:
    learning_rate: float = option(1e-3, help="peak learning rate")
    warmup_steps: int = 10


@dataclass(frozen=True)
class Config:
    layers: int = 2
    max_steps: int = 100
    optim: Optim = Optim()

    def __post_init__(self) -> None:
        check(self, "", max_steps="[0, 1000]")
        check(self.optim, "optim.", learning_rate=">= 0")
        if self.optim.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps {self.optim.warmup_steps} > max_steps {self.max_steps}")


@dataclass(frozen=True)
class Options:
    recipe: str = option(help="name of the recipe")
    out: Path = option(help="where to write")
    note: str = option("", help="any text")
    seed: int = option(1, help="the seed")
    resume: bool = option(True, help="whether to go on")
    tasks: tuple[str, ...] = option((), help="names")
    mode: Literal["must", "allow"] = option("allow", help="how")
    steps: int | None = option(None, help="shortcut of max_steps")

    def __post_init__(self) -> None:
        require(self.recipe.islower(), "recipe", self.recipe, "lower case")
        if self.tasks:
            check_distinct(self, "tasks")


def base_config(options: Options) -> Config:
    if options.recipe not in {"small", "deep"}:
        raise ConfigError(f"unknown recipe {options.recipe!r}")
    return Config(layers=12 if options.recipe == "deep" else 2)


def never(*_: Any) -> None:
    raise AssertionError("the job was started")


class ExampleJob(Job):
    examples = ("smallbench pretrain small --out=runs/a",)


JOB = ExampleJob(
    name="pretrain",
    options=Options,
    run=never,
    words=("recipe",),
    config=base_config,
    shortcuts={"steps": "max_steps"},
)


def resolve(line: str, job: Job = JOB, **environment: str) -> tuple[Any, Any]:
    """Options and configuration of a command line, started with the needed ones."""
    _, options, config = cli.resolve(job, shlex.split(line), environment)
    return options, config


NEEDED = "small --out=o"


def words_of(example: str) -> list[str]:
    words = shlex.split(example)
    assert words[0] == "smallbench"
    return words[1:]
