"""Configuration: frozen dataclasses in, dictionaries and digests out.

Defaults stand in the dataclasses and nowhere else. A configuration is built in layers (recipe <
YAML file < `SMALLBENCH_*` variables < flags); each layer only overrides keys that exist, and every
value is read by the annotation of its field, never guessed from its looks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NewType, TypeVar, Union

from smallbench.errors import ConfigError, nearest
from smallbench.registry import Registry

T = TypeVar("T")

Location = NewType("Location", str)
"""A local path, or the URL of a storage; a `Path` would make one slash of a URL's two."""

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def option(default: Any = MISSING, *, help: str, metavar: str = "", **limits: int | None) -> Any:
    """Return a dataclass field that explains itself in `--help`; without a default it is required.

    `least=…` is the least integer that it takes, 0 if it is not given; None: any.
    """
    metadata = {"help": help, "metavar": metavar, **limits}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def help_of(cls: type, name: str) -> str:
    """Return the help of a field: its own, or that of the class where it was first declared."""
    declared = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((f.metadata["help"] for f in declared if f and f.metadata.get("help")), "")


def annotations_of(cls: type) -> dict[str, Any]:
    """Field name to resolved type annotation of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def describe(annotation: Any) -> str:
    """Return an annotation in a user's words: `int`, `true|false`, `a|b`, `int or none`."""
    origin = typing.get_origin(annotation)
    if annotation is bool:
        return "true|false"
    if annotation is type(None):
        return "none"
    if annotation is Path:
        return "path"
    if annotation is Location:
        return "path|URL"
    if origin is Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in typing.get_args(annotation))
    if origin is tuple:
        return f"{describe(typing.get_args(annotation)[0])},…"
    return str(getattr(annotation, "__name__", annotation))


def parse_value(value: Any, annotation: Any) -> Any:
    """Read text of a flag, or a value from YAML or JSON, by an annotation.

    Raises `ValueError` if it is not one. Nothing is guessed: `1.10` stays `"1.10"` for a `str`, and
    `1e5` is not an `int`. Inside YAML and JSON, text is read like a flag's: YAML 1.1 has no 1e-3.
    """
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    text = value if isinstance(value, str) else None
    if annotation is Any or (annotation is str and text is not None):
        return value
    if annotation is bool:
        word = str(value).strip().lower()
        if (text is not None or isinstance(value, bool)) and word in _TRUE | _FALSE:
            return word in _TRUE
    elif annotation in (int, float):
        number = value if text is None else annotation(text)
        is_number = isinstance(number, int | annotation) and not isinstance(number, bool)
        if is_number and abs(number) <= sys.float_info.max:  # finite
            return annotation(number)
    elif annotation is Path:
        if text or isinstance(value, Path):
            return Path(value).expanduser()
    elif annotation is Location:
        if text:
            text = text if "://" in text else text.rstrip("/") or "/"
            return str(Path(text).expanduser()) if text.startswith("~") else text
    elif annotation is type(None):
        if value is None or (text or "").strip().lower() in {"none", "null"}:
            return None
    elif origin is Literal:
        for choice in members:
            if value == choice or text == str(choice):
                return choice
    elif origin in (tuple, Sequence):
        parts = value if text is None else [p.strip() for p in text.split(",") if p.strip()]
        if isinstance(parts, list | tuple):
            read = [parse_value(part, members[0]) for part in parts]
            return tuple(read) if origin is tuple else read
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {str(key): parse_value(part, members[1]) for key, part in value.items()}
    elif is_dataclass(annotation):
        if isinstance(value, Mapping):
            return from_dict(typing.cast(type, annotation), value)
    elif origin in (Union, types.UnionType):
        # "none" may be the name of a choice; else it is None, before a path or string swallows it.
        for member in sorted(members, key=_reading_order):
            try:
                return parse_value(value, member)
            except ConfigError:  # of a key inside
                raise
            except ValueError:
                continue
    elif annotation is not str:
        raise TypeError(f"no reader for annotation {annotation!r}")
    raise ValueError(f"not a {describe(annotation)}")


_IN_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}


def _expected(annotation: Any) -> str:
    """Return the values that an annotation expects: `an integer or none`, `one of a, b`."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, typing.get_args(annotation)))
    if origin is tuple:
        return f"{_expected(typing.get_args(annotation)[0])}, or several separated by commas"
    if origin in (dict, Mapping):
        return "keys and their values"
    return _IN_WORDS.get(annotation) or describe(annotation)


def _reading_order(member: Any) -> int:
    return 0 if typing.get_origin(member) is Literal else 1 if member is type(None) else 2


def read_value(key: str, value: Any, annotation: Any, *, least: int | None = 0) -> Any:
    """`value` (text of a flag, or a value from YAML or JSON) as `annotation`; errors name `key`.

    No integer under `least` is taken.
    """
    try:
        read = parse_value(value, annotation)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        expected = _expected(annotation)
        raise ConfigError(f"Invalid value for {key}: {value!r} (expected {expected})") from None
    except RuntimeError:  # expanduser
        raise ConfigError(
            f"{key}={value!r}: ~ cannot be expanded to a home directory; use an absolute path"
        ) from None
    for number in read if isinstance(read, tuple) else (read,):
        if type(number) is int and least is not None and number < least:
            raise ConfigError(f"{key}={number} is out of range; expected at least {least}")
        if type(number) is int and number >= 1 << 63:  # no library takes more
            raise ConfigError(f"{key}={number} is out of range; expected less than 2^63")
    return read


def least_of(f: Field[Any]) -> int | None:
    """The least integer that a field takes: its own `least`, or 0; None if its default is less.

    Integers are counts, sizes and seeds nearly everywhere.
    """
    if "least" in f.metadata:
        return typing.cast("int | None", f.metadata["least"])
    is_negative = type(f.default) is int and f.default < 0
    return None if is_negative else 0


def section(table: Registry, default: Callable[[], Any]) -> Any:
    """Return a dataclass field whose class is chosen by a name in `table`.

    The name is a value of the section itself, under the table's kind: `model.architecture`.
    """
    return field(default_factory=default, metadata={"table": table})


def section_class(f: Field[Any], annotation: Any, data: Any = None) -> type | None:
    """Return the dataclass that a field holds, or None for a plain value.

    `data` are the section's values: where the field has a table, the name in them decides.
    """
    table: Registry | None = f.metadata.get("table")
    if table is None:
        return annotation if is_dataclass(annotation) and isinstance(annotation, type) else None
    if isinstance(data, Mapping) and data.get(table.kind):
        return table.config_class(str(data[table.kind]))
    assert f.default_factory is not MISSING
    return type(f.default_factory())


def set_section_names(config: Any) -> None:
    """Set the name in each section to the one that belongs to its class; for `__post_init__`.

    A class inherits the name of the configuration that it extends, and would build that object.
    """
    for f in fields(config):
        table: Registry | None = f.metadata.get("table")
        if table is not None:
            value = getattr(config, f.name)
            name = table.name_of(value)
            if name != getattr(value, table.kind):
                object.__setattr__(config, f.name, replace(value, **{table.kind: name}))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON-ready values, sections as nested dictionaries."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return to_dict(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        return value

    return {f.name: plain(getattr(config, f.name)) for f in fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any], *, prefix: str = "") -> T:
    """Return the inverse of `to_dict`.

    Raises `ConfigError` on unknown or missing keys, wrong values.
    """
    annotations = annotations_of(cls)
    for key in data:
        if key not in annotations:
            raise ConfigError(f"unknown key {prefix + key!r}; {nearest(key, annotations)}")
    values = {}
    for f in fields(cls):  # type: ignore[arg-type]
        key, annotation = prefix + f.name, annotations[f.name]
        if f.name not in data:
            if f.default is MISSING and f.default_factory is MISSING:
                raise ConfigError(f"missing key {key!r}, expected {describe(annotation)}")
            continue
        value = data[f.name]
        section = section_class(f, annotation, value)
        if section is None:
            values[f.name] = read_value(key, value, annotation, least=least_of(f))
        elif isinstance(value, Mapping):
            values[f.name] = from_dict(section, value, prefix=f"{key}.")
        else:
            raise ConfigError(f"{key}={value!r} is not a section of keys")
    return cls(**values)


@dataclass(frozen=True)
class Key:
    """What is known of a key of a configuration."""

    annotation: Any
    about: Field[Any]
    value: Any
    """In the configuration, as `to_dict` has it."""
    help: str = ""


def keys_of(config: Any, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Key]:
    """Return every dotted key of a configuration, in declaration order.

    `changes` may name another class of a section (`model.architecture`), whose keys are then there.
    """
    return _keys_of(type(config), _with_sections(config, changes), "")


def _keys_of(cls: type, data: Mapping[str, Any], prefix: str) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    annotations = annotations_of(cls)
    for f in fields(cls):
        value = data.get(f.name, f.default)
        section = section_class(f, annotations[f.name], value)
        if section is None:
            keys[prefix + f.name] = Key(annotations[f.name], f, value, help_of(cls, f.name))
        else:
            inside = value if isinstance(value, Mapping) else {}
            keys |= _keys_of(section, inside, f"{prefix}{f.name}.")
    return keys


def _with_sections(config: Any, changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `to_dict(config)` with the sections that `changes` gives another class.

    Values of the old class that differ from their defaults are kept, for keys that the new class
    has too.
    """
    data = to_dict(config)
    for f in fields(config):
        section, path = getattr(config, f.name), f"{prefix}{f.name}."
        if not is_dataclass(section):
            continue
        data[f.name] = _with_sections(section, changes, path)
        table: Registry | None = f.metadata.get("table")
        name = changes.get(f"{path}{table.kind}") if table else None
        if table is not None and name is not None:
            cls = table.config_class(str(name))
            if cls is not type(section):
                kept = {g.name for g in fields(section) if getattr(section, g.name) != g.default}
                kept &= {g.name for g in fields(cls)}
                data[f.name] = {k: v for k, v in data[f.name].items() if k in kept}
            data[f.name][table.kind] = str(name)
    return data


def override_all(config: T, values: Mapping[str, Any]) -> T:
    """Return a copy of `config` with the dotted keys set, and checked together.

    A value may be text from a flag. Raises `ConfigError` with the nearest known key for an unknown
    one.
    """
    known = keys_of(config, values)
    data = _with_sections(config, values)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}; {nearest(key, known)}")
        *sections, name = key.split(".")
        section = data
        for part in sections:
            section = section[part]
        section[name] = value
    return from_dict(type(config), data)


def flatten(data: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two `to_dict` results, as key → (old, new)."""
    old, new = flatten(old), flatten(new)
    keys = list(dict.fromkeys([*old, *new]))
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def digest(config: Any) -> str:
    """SHA-256 over the canonical JSON of a configuration: equal iff every value is equal."""
    data = to_dict(config) if dataclasses.is_dataclass(config) else config
    text = json.dumps(_canonical(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(member) for member in value]
    # A rate written as 0 equals 0.0 and -0.0, so their digests do too.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(eq=False)
class RangeError(ConfigError):
    """A value is outside its range; `jobs.resolve` names the flag or file that gave it."""

    key: str
    value: Any
    expected: str

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"Invalid value for {self.key}: {self.value!r} (expected {self.expected})"
        values = self.value if isinstance(self.value, list | tuple) else (self.value,)
        written = ",".join(map(str, values))
        return f"{self.key}={written} is out of range; expected {self.expected}"


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raise `RangeError` naming key, value and expectation unless `condition` holds."""
    if not condition:
        raise RangeError(key, value, expected)


def check(config: Any, section: str, **ranges: str) -> None:
    """Raise `RangeError` if a value is outside its range, such as `>= 1` or `[0, 1)`.

    None is in every range.
    """
    for name, expected in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        if expected[0] in "[(":
            low, high = map(float, expected[1:-1].split(","))
            is_inside = low <= value <= high
            is_inside &= value != low or expected[0] == "["
            is_inside &= value != high or expected[-1] == "]"
        else:
            sign, bound = expected.split()
            is_inside = COMPARISONS[sign](value, float(bound))
        require(is_inside, section + name, value, expected)


COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le}


def check_distinct(config: Any, *names: str) -> None:
    """Raise `RangeError` if one of these tuples is empty, or has a value twice."""
    for name in names:
        values = getattr(config, name)
        is_distinct = values is None or 0 < len(values) == len({*values})
        require(is_distinct, name, values, "at least one, none twice")


def command(job: str, *words: object, **flags: object) -> str:
    """A command line that a shell reads as it is meant: `smallbench export '--run=my runs/a'`."""
    given = [str(word) for word in words]
    given += [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join(["smallbench", job, *given])
