"""The pages of `smallbench --help` and `smallbench JOB --help`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from inspect import cleandoc
from typing import Any

from smallbench.config import annotations_of, describe, keys_of
from smallbench.jobs.base import JOBS, Job
from smallbench.jobs.resolve import PREFIX, Shared

EXIT_CODES = (
    "Exit codes: 0 done, 1 crash, 2 wrong usage (nothing was started), 65 data unusable, "
    "69 something needed is missing, 70 diverged, 75 saved and interrupted: run it again, "
    "76 another writer, 77 credentials refused, 78 wrong configuration, 130 and 143 interrupted."
)


def overview() -> str:
    """Return the page of `smallbench --help`."""
    width = max(map(len, JOBS))
    rows = [f"  {name:<{width}}  {summary}" for name, summary in JOBS.items()]
    return "\n".join(
        [
            "usage: smallbench JOB [--option=value …]",
            "",
            _wrap(
                "Pretrain small language encoders from scratch on one 16 GB GPU (or a CPU), "
                "fine-tune them on GLUE, and compare them fairly. Start with 'smallbench "
                "quickstart'; the jobs below are the steps of the same chain, in order."
            ),
            "",
            "jobs:",
            *rows,
            "",
            _wrap(
                "'smallbench JOB --help' explains a job, its options and shows examples. With "
                "--dry_run every job prints its resolved configuration and touches nothing."
            ),
            "",
            _wrap(EXIT_CODES),
        ]
    )


def manual(job: Job, config: Any = None) -> str:
    """Return the page of `smallbench JOB --help`: what the job is for, its options, examples.

    `config` is what its configuration keys are shown with.
    """
    optional = {field.name for field in fields(job.options) if field.default is not MISSING}
    word = "".join(f" [{n.upper()}]" if n in optional else f" {n.upper()}" for n in job.words)
    sections = " [--SECTION.KEY=VALUE …]" if job.config else ""
    action = "" if job.run else " ACTION"
    page = [
        f"usage: smallbench {job.name}{action}{word} [--option=value …]{sections}",
        "",
        _prose(cleandoc(job.doc or import_module(f"smallbench.jobs.{job.name}").__doc__ or "")),
        "",
        *_action_rows(job),
        *(["options:", *_option_rows(job.options, job.words), ""] if job.run else []),
        "options of every job:",
        *_option_rows(Shared, ()),
        *_row("--help", "print this page"),
    ]
    if job.examples:
        page += ["", "examples:", *(f"  {example}" for example in job.examples)]
    if config is not None:
        page += ["", f"configuration keys, with their values in {config.recipe}:"]
        for name, key in keys_of(config).items():
            if name not in annotations_of(job.options):
                about = key.about.metadata
                left = f"--{name}={about.get('metavar') or describe(key.annotation)}"
                page += _row(left, about.get("help", ""), key.value, shown=True, indent=46)
    page += [
        "",
        _wrap(
            f"Each option can also stand in the --config file ('run_dir: runs/a') or in a variable "
            f"({PREFIX}RUN_DIR; a section's key with two underscores, {PREFIX}SECTION__KEY). "
            "A flag wins over a variable, a variable over the file, the file over the defaults."
        ),
        "",
        _wrap(EXIT_CODES),
    ]
    return "\n".join(page)


def _action_rows(job: Job) -> list[str]:
    if not job.actions:
        return []
    rows = [
        row
        for name, action in job.actions.items()
        for row in _row(name, action.doc.partition("\n")[0].rstrip("."))
    ]
    return [f"actions, each with a --help of its own ('smallbench {job.name} ACTION --help'):",
            *rows, ""]  # fmt: skip


def _option_rows(cls: type, words: Sequence[str]) -> list[str]:
    rows = []
    for field in sorted(fields(cls), key=lambda f: f.default is not MISSING):  # required first
        annotation, help = annotations_of(cls)[field.name], field.metadata.get("help", "")
        kind = describe(annotation).removesuffix(" or none")
        left = f"--{field.name}={field.metadata.get('metavar') or kind}"
        if field.name in words:
            left = field.name.upper()
        elif annotation is bool and field.default is False:
            left = f"--{field.name}"
        if field.default is MISSING:
            rows += _row(left, f"{help} (required)")
        else:
            rows += _row(left, help, field.default, shown=field.default not in (None, False, ()))
    return rows


def _row(
    left: str, text: str, value: Any = None, *, shown: bool = False, indent: int = 34
) -> list[str]:
    if shown:
        text = f"{text} [{_plain(value)}]".strip()
    lines = textwrap.wrap(text, max(_columns() - indent, 30)) or [""]
    if len(left) > indent - 4:
        return [f"  {left}", *(f"{'':{indent}}{line}" for line in lines)]
    return [f"  {left:<{indent - 2}}{lines[0]}", *(f"{'':{indent}}{line}" for line in lines[1:])]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _wrap(text: str) -> str:
    return textwrap.fill(text, _columns())


def _prose(text: str) -> str:
    """Return a docstring with its paragraphs wrapped; indented ones keep their lines."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(p if re.match(r"\s", p) else _wrap(" ".join(p.split())) for p in paragraphs)
