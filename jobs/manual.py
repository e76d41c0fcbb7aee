"""The pages of `smallbench --help` and `smallbench JOB --help`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from inspect import cleandoc
from typing import Any

from smallbench.config import annotations_of, describe, help_of, keys_of
from smallbench.jobs.base import JOBS, Job
from smallbench.jobs.resolve import PREFIX, Shared, word_of
from smallbench.templates import from_template


def overview() -> str:
    """Return the page of `smallbench --help`."""
    return from_template(__package__, "overview.txt", jobs=JOBS, wrap=_wrap).rstrip()


def manual(job: Job, config: Any = None) -> str:
    """Return the page of `smallbench JOB --help`: what the job is for, its options, examples.

    `config` is what its configuration keys are shown with.
    """
    optional = {field.name for field in fields(job.options) if field.default is not MISSING}
    word = {field.name: word_of(field) for field in fields(job.options)}
    doc = job.doc or import_module(f"smallbench.jobs.{job.name}").__doc__ or ""
    return from_template(
        __package__,
        "manual.txt",
        job=job,
        words="".join(f" [{word[n]}]" if n in optional else f" {word[n]}" for n in job.words),
        doc=_prose(cleandoc(doc)),
        shared=Shared,
        config=config,
        keys=[
            _row(
                f"--{name}={key.about.metadata.get('metavar') or describe(key.annotation)}",
                key.help, key.value, shown=True, indent=46,
            )
            for name, key in ({} if config is None else keys_of(config)).items()
            if name not in annotations_of(job.options)
        ],
        prefix=PREFIX,
        row=_row,
        option_rows=_option_rows,
        wrap=_wrap,
    ).rstrip()  # fmt: skip


def _option_rows(cls: type, words: Sequence[str] = ()) -> str:
    rows = []
    for field in sorted(fields(cls), key=lambda f: _place(f, words)):
        annotation, help = annotations_of(cls)[field.name], help_of(cls, field.name)
        kind = describe(annotation).removesuffix(" or none")
        left = f"--{field.name}={field.metadata.get('metavar') or kind}"
        if field.name in words:
            left = word_of(field)
        elif annotation is bool and field.default is False:
            left = f"--{field.name}"
        if field.default is MISSING:
            rows.append(_row(left, f"{help} (required)"))
        else:
            is_shown = field.default not in (None, False, ())
            rows.append(_row(left, help, field.default, shown=is_shown))
    return "\n".join(rows)


def _place(field: Field[Any], words: Sequence[str]) -> tuple[int, bool]:
    """Return the sort key of an option: words as in the usage line, then required flags first."""
    place = words.index(field.name) if field.name in words else len(words)
    return place, field.default is not MISSING


def _row(left: str, text: str, value: Any = None, *, shown: bool = False, indent: int = 34) -> str:
    if shown:
        text = f"{text} [{_plain(value)}]".strip()
    first, *others = textwrap.wrap(text, max(_columns() - indent, 30)) or [""]
    if len(left) > indent - 4:
        first, others = "", [first, *others]
    lines = [f"  {left:<{indent - 2}}{first}".rstrip(), *(f"{'':{indent}}{o}" for o in others)]
    return "\n".join(lines)


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
