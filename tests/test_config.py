import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbench.config import (
    Location,
    describe,
    differing_keys,
    digest,
    flatten,
    from_dict,
    keys_of,
    option,
    override_all,
    parse_value,
    section,
    set_section_names,
    to_dict,
)
from smallbench.errors import ConfigError, ExitCode
from smallbench.registry import Registry

SHAPES = Registry(
    "kind",
    {"round": (f"{__name__}:Round", "Round"), "flat": (f"{__name__}:Flat", "Flat")},
    config_base=f"{__name__}:Shape",
)


class Shape:
    """What both configurations extend."""


@dataclass(frozen=True)
class Round(Shape):
    kind: str = "round"
    radius: float = 1.0
    color: str = "red"


@dataclass(frozen=True)
class Flat(Shape):
    kind: str = "flat"
    color: str = "blue"
    width: int = 4
    parts: int = 2

    def __post_init__(self) -> None:
        if self.width % self.parts:
            raise ConfigError(f"width {self.width} is not a multiple of parts {self.parts}")


@dataclass(frozen=True)
class Rate:
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)


@dataclass(frozen=True)
class Whole:
    name: str = "a"
    steps: int = 10
    limit: int | None = None
    keep: bool = True
    folder: Path = Path("runs")
    mode: Literal["must", "allow"] = "allow"
    tags: tuple[str, ...] = ()
    rate: Rate = field(default_factory=Rate)
    shape: Any = section(SHAPES, Round)

    def __post_init__(self) -> None:
        set_section_names(self)


finite = st.floats(allow_nan=False, allow_infinity=False)
parts = st.integers(1, 9)
wholes = st.builds(
    Whole,
    name=st.text(),
    steps=st.integers(0, 2**63 - 1),
    limit=st.none() | st.integers(0, 2**63 - 1),
    keep=st.booleans(),
    folder=st.from_regex(r"[a-z0-9.]{1,8}(/[a-z0-9]{1,8})?", fullmatch=True).map(Path),
    mode=st.sampled_from(["must", "allow"]),
    tags=st.lists(st.text()).map(tuple),
    rate=st.builds(Rate, learning_rate=finite, betas=st.lists(finite).map(tuple)),
    shape=st.builds(Round, radius=finite)
    | parts.flatmap(lambda p: st.builds(Flat, width=parts.map(lambda n: n * p), parts=st.just(p))),
)


@given(wholes)
def test_from_dict_is_the_inverse_of_to_dict(config: Whole) -> None:
    assert from_dict(Whole, to_dict(config)) == config


@given(wholes, wholes)
def test_digests_are_equal_iff_the_configurations_are(a: Whole, b: Whole) -> None:
    assert digest(a) == digest(from_dict(Whole, to_dict(a)))
    assert (digest(a) == digest(b)) == (a == b)


@pytest.mark.parametrize(
    "change",
    [{"name": "b"}, {"limit": 0}, {"keep": False}, {"folder": Path("b")}, {"tags": ("",)}],
)
def test_every_single_change_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest(replace(Whole(), **change)) != digest(Whole())


def test_a_rate_written_as_an_integer_has_the_digest_of_the_rate() -> None:
    assert digest(Rate(learning_rate=0)) == digest(Rate(learning_rate=0.0))
    assert digest(Rate(learning_rate=0.0)) == digest(Rate(learning_rate=-0.0))


@given(wholes, st.integers(0, 2**63 - 1), finite)
def test_override_changes_the_named_key_alone(config: Whole, steps: int, rate: float) -> None:
    assert override_all(config, {"steps": str(steps)}) == replace(config, steps=steps)
    new = override_all(config, {"rate.learning_rate": repr(rate)})
    assert new == replace(config, rate=replace(config.rate, learning_rate=rate))
    assert set(differing_keys(to_dict(config), to_dict(new))) <= {"rate.learning_rate"}


@given(wholes)
def test_every_key_can_be_overridden_with_its_own_value(config: Whole) -> None:
    flat = flatten(to_dict(config))
    assert list(flat) == list(keys_of(config))
    for name, key in keys_of(config).items():
        assert override_all(config, {name: key.value}) == config


def test_keys_that_must_agree_change_together() -> None:
    config = Whole(shape=Flat(width=4, parts=2))
    changed = override_all(config, {"shape.width": "9", "shape.parts": "3"})
    assert changed.shape == Flat(width=9, parts=3)
    with pytest.raises(ConfigError, match="width 9 is not a multiple of parts 2"):
        override_all(config, {"shape.width": "9"})


def test_a_section_of_another_class_keeps_what_was_set_and_both_have() -> None:
    for color, expected in (("green", "green"), ("red", "blue")):  # red is a default, not a choice
        config = Whole(shape=Round(radius=3.0, color=color))
        changed = override_all(config, {"shape.kind": "flat", "shape.width": "6"})
        assert changed.shape == Flat(color=expected, width=6)
        assert "shape.radius" not in keys_of(config, {"shape.kind": "flat"})
    with pytest.raises(ConfigError, match=r"unknown key 'shape\.radius'"):
        override_all(Whole(), {"shape.kind": "flat", "shape.radius": "1"})


def test_a_section_bears_the_name_of_its_class() -> None:
    assert Whole(shape=Flat(kind="round")).shape == Flat()
    assert Whole(shape=Flat(kind="")).shape == Flat()


def test_negative_integers_are_refused_unless_the_field_allows_them() -> None:
    @dataclass(frozen=True)
    class Numbers:
        count: int = 1
        counts: tuple[int, ...] = ()
        some: int | None = None
        offset: int = -1
        any_number: int = option(0, help="", least=None)
        shift: float = 0.0

    for key, value in {"count": "-1", "counts": "1,-2", "some": "-3", "shift": "x"}.items():
        with pytest.raises(ConfigError, match=rf"{key}.*(at least 0|a finite number)"):
            override_all(Numbers(), {key: value})
    changes = {"offset": "-2", "any_number": "-3", "shift": "-4"}
    changed = override_all(Numbers(), changes)
    assert changed == Numbers(offset=-2, any_number=-3, shift=-4.0)
    assert from_dict(Numbers, to_dict(changed)) == changed


def test_a_home_folder_is_written_out_in_every_kind_of_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ü b")

    @dataclass(frozen=True)
    class Places:
        one: Path = Path()
        several: tuple[Path, ...] = ()
        url: Location | None = None

    values = {"one": "~/x", "several": ["~/x", "y"], "url": "~/x"}
    read = from_dict(Places, values)
    assert (str(read.one), read.several[0], read.url) == (
        "/home/ü b/x",
        Path(read.one),
        "/home/ü b/x",
    )
    assert parse_value("./bert", Location) == "./bert"  # not the hub's model of that name
    assert parse_value("s3://a/~b", Location) == "s3://a/~b"


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [("stepz", "steps"), ("rate.learning_rat", "rate.learning_rate"), ("learning_rate", "rate")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; did you mean '{suggestion}") as e:
        override_all(Whole(), {key: "1"})
    assert e.value.exit_code is ExitCode.CONFIG


def test_unknown_missing_and_wrong_keys_of_a_dictionary_are_named_by_their_path() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'rate\.betaz'; did you mean 'betas'"):
        from_dict(Whole, {"rate": {"betaz": []}})
    with pytest.raises(ConfigError, match=r"rate\.learning_rate: True .expected a finite number"):
        from_dict(Whole, {"rate": {"learning_rate": True}})
    with pytest.raises(ConfigError, match="rate=3 is not a section"):
        from_dict(Whole, {"rate": 3})
    with pytest.raises(ConfigError, match="unknown kind 'rund'; did you mean 'round'"):
        from_dict(Whole, {"shape": {"kind": "rund"}})

    @dataclass(frozen=True)
    class Required:
        out: "int" = option(help="where")

    with pytest.raises(ConfigError, match="missing key 'out', expected int"):
        from_dict(Required, {})


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("False", bool, False),
        ("no", bool, False),
        ("0", bool, False),
        ("TRUE", bool, True),
        ("1.10", str, "1.10"),
        ("1e5", str, "1e5"),
        ("a,b", str, "a,b"),
        ("None", str, "None"),
        ("-3", int, -3),
        ("1e-3", float, 1e-3),
        ("3", float, 3.0),
        ("none", int | None, None),
        ("null", Path | None, None),
        ("7", int | None, 7),
        ("none", str | None, None),
        ("cola,sst2", tuple[str, ...], ("cola", "sst2")),
        ("1, 2,3", tuple[int, ...], (1, 2, 3)),
        ("", tuple[int, ...], ()),
        ("must", Literal["must", "never"], "must"),
        ("2", Literal[1, 2], 2),
        ("a/b", Path, Path("a/b")),
        ("1.10", Path, Path("1.10")),
        ("~/x", Path, Path.home() / "x"),
        ("~/x", Location, str(Path.home() / "x")),
        ("a/b/", Location, "a/b"),
        ("s3://bucket/~/x", Location, "s3://bucket/~/x"),
    ],
)
def test_text_is_read_by_the_annotation_alone(text: str, annotation: Any, value: Any) -> None:
    read = parse_value(text, annotation)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("1e5", int),
        ("1.0", int),
        ("", int),
        ("true", int),
        ("nan", float),
        ("inf", float),
        ("12e3456", float),
        ("maybe", bool),
        ("", bool),
        ("Must", Literal["must", "never"]),
        ("1,x", tuple[int, ...]),
        ("x", int | None),
        ("", Path),
        ("", Location),
    ],
)
def test_text_that_only_resembles_a_value_is_refused(text: str, annotation: Any) -> None:
    with pytest.raises(ValueError, match=r"not a|invalid literal|could not convert"):
        parse_value(text, annotation)


def test_yaml_values_are_read_by_the_annotation_too() -> None:
    # PyYAML reads 1e-3 as text, in a list as elsewhere.
    config = from_dict(Whole, {"rate": {"learning_rate": "1e-3", "betas": ["1e-3", 0.5, 1]}})
    assert config.rate == Rate(1e-3, (1e-3, 0.5, 1.0))
    for wrong in ({"name": 1.1}, {"steps": 1.0}, {"steps": True}, {"keep": 1}, {"limit": 0.5}):
        with pytest.raises(ConfigError):
            from_dict(Whole, wrong)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true|false"),
        (int | None, "int or none"),
        (Literal["a", "b"], "a|b"),
        (tuple[int, ...], "int,…"),
        (Path, "path"),
        (Location, "path|URL"),
    ],
)
def test_a_type_is_described_in_a_users_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_options_explain_themselves() -> None:
    @dataclass(frozen=True)
    class Options:
        seed: int = option(1, help="the seed", metavar="N")

    (only,) = fields(Options)
    assert only.metadata == {"help": "the seed", "metavar": "N"}
    assert Options().seed == 1


def test_nan_and_infinity_are_never_accepted() -> None:
    with pytest.raises(ConfigError, match="expected a finite number"):
        override_all(Whole(), {"rate.learning_rate": "nan"})
    assert math.isfinite(Whole().rate.learning_rate)


def test_records_are_read_with_their_mappings_and_lists_of_sections() -> None:
    @dataclass(frozen=True)
    class Record:
        counts: Mapping[str, int]
        rates: Sequence[Rate]
        options: Mapping[str, Any]
        last: Rate | None = None

    data = {"counts": {"a": 1}, "rates": [{"learning_rate": 0.5}], "options": {"b": [1, "2"]}}
    read = from_dict(Record, data)
    assert read == Record({"a": 1}, [Rate(learning_rate=0.5)], {"b": [1, "2"]})
    assert from_dict(Record, to_dict(read)) == read
    for change, message in (
        ({"counts": {"a": 0.5}}, r"counts: \{'a': 0.5\} \(expected keys and their values\)"),
        ({"rates": [{"learning_rat": 1}]}, "unknown key 'learning_rat'"),
        ({"last": {"betaz": []}}, "unknown key 'betaz'"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(Record, data | change)
