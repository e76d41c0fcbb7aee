"""Tables of named things (architectures, objectives, recipes, …), resolved only when one is used.

A row is a name and where its object lives, `"package.module:attribute"`, so that listing a table
imports nothing heavy. Adding a thing is one new file and one row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from smallbench.errors import ConfigError


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """The ending of an error about `name`: the nearest known name, or all of them.

    `prefix` is what a user writes before each name (`--`); it does not count as similarity.
    """
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {prefix + close[0]!r}?"
    return f"known: {', '.join(prefix + other for other in names) or 'none'}"


class Registry(Mapping[str, Any]):
    """A read-only table from name to object, imported at the first look-up.

    Raises `ConfigError` with the nearest known name for an unknown one.
    """

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Any:
        if name not in self._rows:
            raise ConfigError(f"unknown {self.kind} {name!r}; {nearest(name, self._rows)}")
        module, _, attribute = self._rows[name].partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
