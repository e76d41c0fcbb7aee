"""What a command consists of. A job module defines `Options`, `run` and `JOB`, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One sub-command of `smallbench`; its one-line summary stands in `jobs.cli.JOBS`.

    `options` is a frozen dataclass of `config.option(...)` fields: one flag each, read by its
    annotation. `words` names the options that bare words set, in order (`pretrain RECIPE`); the
    last takes all that are left where it is a tuple. Where `config` is given, it maps the options
    to a base configuration whose keys the flags
    `--SECTION.KEY=VALUE` override, and `run` receives it as its second argument. `shortcuts` maps
    an option to the configuration key that it sets. `prints_config` is False where the output is
    an answer to read or parse, not a run to log. `examples` are whole command lines; `--help`
    shows them, and a test parses each.
    """

    name: str
    options: type
    run: Callable[..., None]
    words: tuple[str, ...] = ()
    config: Callable[[Any], Any] | None = None
    shortcuts: Mapping[str, str] = field(default_factory=dict)
    prints_config: bool = True
    examples: tuple[str, ...] = ()
