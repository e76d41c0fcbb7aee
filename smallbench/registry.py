"""Tables of named things (architectures, objectives, recipes, …), resolved only when one is used.

A row is a name and where its object lives, `"package.module:attribute"`, so that listing a table
imports nothing heavy; with a configuration, a pair of that and the name of the class.
Adding a thing is one new file and one row. A user's own thing needs no row: `FILE.py:NAME`,
`package.module:NAME` or the name of an installed package's entry point is as good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, cast

from smallbench.errors import ConfigError, nearest
from smallbench.plugins import canonical, config_class_of, is_reference, reference_of, resolve


class Registry(Mapping[str, Any]):
    """A read-only table from name to object, imported at the first look-up.

    `group` is the entry-point group in which installed packages add names; `base` is the class that
    a plug-in must extend, if there is one. `config_base` is the class that all configurations
    extend; those of the rows are in its module, which can be imported without torch. Raises
    `ConfigError` with the nearest known name for an unknown one.

    A user's own object needs no row: `FILE.py:NAME` is looked up too (`smallbench.plugins`).
    """

    def __init__(
        self,
        kind: str,
        rows: Mapping[str, str | tuple[str, str]],
        *,
        group: str = "",
        base: str = "",
        config_base: str = "",
    ) -> None:
        self.kind, self.group, self._base, self._config_base = kind, group, base, config_base
        pairs = {name: (row, "") if isinstance(row, str) else row for name, row in rows.items()}
        module = config_base.partition(":")[0]
        self._rows = {name: place for name, (place, _) in pairs.items()}
        self._configs = {name: f"{module}:{cls}" for name, (_, cls) in pairs.items() if cls}

    def __getitem__(self, name: str) -> Any:
        return _imported(self._rows[name]) if name in self._rows else self._plugged_in(name)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def installed(self) -> dict[str, str]:
        """Names that installed packages add → `package.module:attribute`; nothing is imported."""
        from importlib.metadata import entry_points

        points = entry_points(group=self.group) if self.group else ()
        return {p.name: p.value.partition("[")[0].strip() for p in points if p.name not in self}

    def canonical(self, name: str) -> str:
        """How a configuration writes `name`: a row's name, or a reference without a folder."""
        if name in self._rows:
            return name
        for row, place in self._rows.items():
            if place == name:
                return row
        if self.group and is_reference(name):
            return canonical(name)
        if self.group and name.endswith(".py"):
            raise ConfigError(
                f"{self.kind} {name!r} names a file only; expected {name}:NAME, where NAME is a "
                "class or function in it"
            )
        installed = self.installed()
        if name not in installed:
            ending = nearest(name, [*self._rows, *installed])
            own = " (or FILE.py:NAME for one of your own)" if self.group else ""
            raise ConfigError(f"unknown {self.kind} {name!r}; {ending}{own}")
        return canonical(installed[name])

    def config_class(self, name: str) -> type:
        """Return the configuration class of `name`, without importing a row's own object."""
        if name in self._configs:
            return cast(type, _imported(self._configs[name]))
        found: Any = config_class_of(self._plugged_in(name))
        base = _imported(self._config_base)
        if not (isinstance(found, type) and issubclass(found, base) and is_dataclass(found)):
            raise ConfigError(
                f"{name} is not {_a(self.kind)}: expected a class or function whose 'config' is "
                f"annotated with a frozen dataclass that extends {base.__module__}.{base.__name__}"
            )
        return cast(type, found)

    def names_with(self, key: str) -> list[str]:
        """Return the rows whose configuration has a field of this name."""
        return [
            name
            for name in self._configs
            if any(f.name == key for f in fields(self.config_class(name)))
        ]

    def name_of(self, config: Any) -> str:
        """Return the name that `config` has in a configuration file.

        That is the name in the field of this kind, if it belongs to the class of `config`; else the
        name of the class.
        """
        given, cls = getattr(config, self.kind), type(config)
        place = f"{cls.__module__}:{cls.__qualname__}"
        if given and self._configs.get(given) == place:
            return str(given)
        if given and given not in self._rows:
            name = self.canonical(given)
            if self.config_class(name) is cls:
                return name
        for name, row in self._configs.items():
            if row == place:
                return name
        return reference_of(cls, lambda thing: self._fits(thing) and config_class_of(thing) is cls)

    def _plugged_in(self, name: str) -> Any:
        thing = resolve(self.canonical(name))
        if not self._fits(thing):
            base = self._base.replace(":", ".")
            expected = f"a {base}" if base else "a class or function"
            raise ConfigError(f"{name} is not {_a(self.kind)}: expected {expected}")
        return thing

    def _fits(self, thing: Any) -> bool:
        if not self._base:
            return callable(thing)
        base = _imported(self._base)
        return isinstance(thing, base) or (isinstance(thing, type) and issubclass(thing, base))


def _imported(row: str) -> Any:
    module, _, attribute = row.partition(":")
    return getattr(import_module(module), attribute)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
