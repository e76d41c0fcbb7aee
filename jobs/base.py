"""What a command consists of. A job module defines `Options`, `run` and `JOB`, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One sub-command of `smallbench`.

    `options` is a frozen dataclass of `config.option(...)` fields: one flag each, read by its
    annotation. `word` names the option that a bare first word sets (`pretrain RECIPE`). Where
    `config` is given, it maps the options to a base configuration whose keys the flags
    `--SECTION.KEY=VALUE` override, and `run` receives it as its second argument.
    """

    name: str
    summary: str
    options: type
    run: Callable[..., None]
    word: str | None = None
    config: Callable[[Any], Any] | None = None
    examples: tuple[str, ...] = ()
