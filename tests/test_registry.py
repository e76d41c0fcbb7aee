import sys

import pytest

from smallbench.errors import ConfigError, ExitCode, nearest, reason_of
from smallbench.registry import Registry

TABLE = Registry(
    "shape", {"circle": "fractions:Fraction", "square": "decimal:Decimal", "gone": "no_module:x"}
)


def test_a_table_imports_a_row_only_when_it_is_used() -> None:
    table = Registry("game", {"this": "this:s"})
    assert list(table) == ["this"]
    assert len(table) == 1
    assert "this" in table
    assert "this" not in sys.modules


def test_a_row_resolves_to_its_object() -> None:
    from fractions import Fraction

    assert TABLE["circle"] is Fraction


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ConfigError, match="unknown shape 'circel'; did you mean 'circle'"
    ) as caught:
        TABLE["circel"]
    assert caught.value.exit_code is ExitCode.CONFIG


def test_a_file_without_a_name_in_it_is_refused_with_the_way_to_write_it() -> None:
    with pytest.raises(
        ConfigError, match=r"shape 'mine\.py' names a file only; expected mine\.py:N"
    ):
        Registry("shape", {}, group="smallbench.shapes")["mine.py"]


def test_a_name_like_no_other_lists_all() -> None:
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("xyz", []) == "known: none"


def test_upper_and_lower_case_do_not_make_names_unlike() -> None:
    assert nearest("BERT-Tiny", ["bert-tiny", "bert-small"]) == "did you mean 'bert-tiny'?"


def test_a_prefix_is_shown_and_does_not_count_as_likeness() -> None:
    assert nearest("foo", ["out"], prefix="--") == "known: --out"
    assert nearest("outt", ["out"], prefix="--") == "did you mean '--out'?"


def test_a_registry_row_without_a_target_is_a_crash_not_a_user_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        TABLE["gone"]


def test_an_error_is_told_by_its_first_line_or_else_by_its_class() -> None:
    assert reason_of(ValueError("\n no such file\n at line 3")) == "no such file"
    assert reason_of(OSError()) == "OSError"
