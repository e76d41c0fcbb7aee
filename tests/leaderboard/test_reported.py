"""The paper's rows, with every value recomputed that can be."""

import math

import pytest

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.markdown_table import REPORTED

FULL = {row.name: row for row in REPORTED if row.cells}
SCORES = {name: {task: c.score for task, c in row.cells.items()} for name, row in FULL.items()}
ACCURACIES = [name for name, task in TASKS.items() if task.ranking_metric == "accuracy"]


def test_five_systems_and_one_reference():
    assert list(FULL) == ["ELECTRA-DeBERTa", "ELECTRA", "DeBERTa", "BERT", "RoBERTa"]
    assert [row.name for row in REPORTED if not row.cells] == ["BERT-Base"]
    assert all(list(row.cells) == list(TASKS) for row in FULL.values())
    averages = [row.average for row in FULL.values()]
    assert averages == sorted(averages, reverse=True)


@pytest.mark.parametrize("name", FULL)
def test_avg_is_the_plain_mean_of_the_cells(name):
    assert sum(SCORES[name].values()) / 8 == pytest.approx(FULL[name].average, abs=0.00501)


def is_share_of_rows(score, num_rows):
    """Whether `score` is 100 k/n, rounded or cut to the one or two decimals that it shows."""
    decimals = 1 if math.isclose(score * 10, round(score * 10)) else 2
    for scale in {10**decimals, 100}:
        for k in range(math.floor(score / 100 * num_rows) - 1, num_rows + 1):
            exact = 100 * k / num_rows
            if exact > score + 1:
                break
            shown = {round(exact * scale), math.floor(exact * scale)}
            if any(math.isclose(value / scale, score, abs_tol=1e-9) for value in shown):
                return True
    return False


def impossible_cells(names):
    return {
        (name, task)
        for name in names
        for task in ACCURACIES
        if not is_share_of_rows(SCORES[name][task], TASKS[task].split("dev").num_rows)
    }


def test_three_cells_of_the_best_dev_rows_are_not_an_accuracy_of_one_run():
    best_dev = [name for name in FULL if name != "ELECTRA"]
    expected = {("ELECTRA-DeBERTa", "mrpc"), ("ELECTRA-DeBERTa", "rte"), ("DeBERTa", "mrpc")}
    assert impossible_cells(best_dev) == expected
    for name, task in expected:
        assert any(f"{SCORES[name][task]:.2f}" in note for note in FULL[name].notes)


def test_the_median_row_has_one_more_that_its_note_names():
    assert impossible_cells(["ELECTRA"]) == {("ELECTRA", "mrpc")}
    note = FULL["ELECTRA"].notes[0]
    assert "87.40" in note
    assert "median" in note


def rounds_to_two_decimals(score, num_rows):
    k = round(score / 100 * num_rows)
    return any(abs(100 * j / num_rows - score) <= 0.005 + 1e-9 for j in (k - 1, k, k + 1))


def test_six_more_cells_are_accuracies_only_if_cut_off_or_shown_with_one_decimal():
    # 788/872 = 90.367 is printed once as 90.40 and once as 90.36; 348/408 = 85.294 as 85.30.
    strict = {
        (name, task)
        for name, scores in SCORES.items()
        for task in ACCURACIES
        if not rounds_to_two_decimals(scores[task], TASKS[task].split("dev").num_rows)
    }
    assert strict - impossible_cells(FULL) == {
        ("ELECTRA-DeBERTa", "sst2"),
        ("ELECTRA", "rte"),
        ("DeBERTa", "sst2"),
        ("DeBERTa", "mnli"),
        ("RoBERTa", "mrpc"),
        ("RoBERTa", "rte"),
    }


def test_upstreams_ranking_mistake_is_noted_on_both_rows_and_not_repeated():
    assert FULL["BERT"].average > FULL["RoBERTa"].average
    for name in ("BERT", "RoBERTa"):
        assert any("ranks RoBERTa above BERT" in note for note in FULL[name].notes)
