"""Near-copies are found among official dev sets; independent models are not flagged."""

from pathlib import Path

import numpy as np

from smallbench.leaderboard.copies import COMPARED, copied_runs, near_copies
from smallbench.leaderboard.text import skeleton
from tests.leaderboard.synthetic import LEVELS, answers, synthetic_gold

GOLD = synthetic_gold()


def models(num, task, rng):
    labels = GOLD.labels[task]["dev"]
    level, spread = LEVELS[task]
    return [
        np.stack([answers(task, labels, ability=level + rng.normal(0, spread / 100), rng=rng)
                  for _ in range(5)]).astype(np.int8)
        for _ in range(num)
    ]  # fmt: skip


def test_independent_models_are_not_near_copies():
    rng = np.random.default_rng(1)
    found = {task: models(20, task, rng) for task in COMPARED}
    known = {Path(f"e{n}"): {task: found[task][n] for task in COMPARED} for n in range(20)}
    assert list(near_copies(known)) == []


def test_a_copy_with_some_rows_changed_is_found_by_both_names():
    rng = np.random.default_rng(2)
    first, other = models(2, "rte", rng)
    copy = first.copy()
    for row in copy:
        row[rng.choice(len(row), 15, replace=False)] ^= 1
    known = {Path(name): {"rte": rows}
             for name, rows in (("first", first), ("copy", copy), ("other", other))}  # fmt: skip
    found = {folder: reason for folder, _, reason in near_copies(known)}
    assert set(found) == {Path("first"), Path("copy")}
    assert "differs from one of first in 15 rows" in found[Path("copy")]


def test_a_copy_of_one_run_in_all_seeds_is_found():
    """Whose own seeds say nothing about how far independent runs differ."""
    rng = np.random.default_rng(3)
    (first,) = models(1, "cola", rng)
    copy = np.stack([first[0]] * len(first))
    for number, row in enumerate(copy):
        row[2 * number : 2 * number + 2] ^= 1
    known = {Path("first"): {"cola": first}, Path("copy"): {"cola": copy}}
    found = {folder: reason for folder, _, reason in near_copies(known)}
    assert "a run differs from one of first in 2 rows" in found[Path("copy")]


def test_runs_of_almost_one_class_are_no_copies():
    rng = np.random.default_rng(4)
    known = {}
    for name in ("one", "two"):
        runs = np.ones((5, 1_043), dtype=np.int8)
        for row in runs:
            row[rng.choice(len(row), 8, replace=False)] = 0
        known[Path(name)] = {"cola": runs}
        assert list(copied_runs("cola", dict(enumerate(runs)))) == []
    assert list(near_copies(known)) == []


def test_names_that_look_alike_have_one_skeleton():
    alike = [
        "BERT small",
        "bert-small",
        "\u0412\u0415R\u0422 small",
        "BERT sma11",
        "\uff22ERT_smaII",
    ]
    assert len(set(map(skeleton, alike))) == 1
    assert skeleton("E|\u212ectra") == skeleton("Electra")
    assert skeleton("\U0001f525") == skeleton("\U0001f525\ufe0f") != skeleton("\U0001f680")
    assert len({skeleton(name) for name in ("BERT", "RoBERTa", "ELECTRA", "BERT 2")}) == 4
