"""The split that chooses a learning rate depends only on the texts."""

import numpy as np
import pytest

from smallbench.errors import DataError
from smallbench.glue.choice import choice_data, choice_rows
from smallbench.glue.task_data import Examples, load_task
from smallbench.glue.tasks import TASKS


def examples(texts):
    return Examples.of("train", texts, None, np.zeros(len(texts)))


def chosen(train):
    return {train.first[row] for row in choice_rows(train)["choice"]}


def test_order_does_not_move_a_row_and_every_row_is_on_one_side():
    texts = [f"sentence {i}" for i in range(500)]
    rows = choice_rows(examples(texts))
    assert len(rows["choice"]) == 50
    assert sorted([*rows["train"], *rows["choice"]]) == list(range(500))
    shuffled = np.random.default_rng(0).permutation(texts).tolist()
    assert chosen(examples(shuffled)) == chosen(examples(texts))
    # By hash, not by place: a tenth of any tenth, roughly.
    assert 10 < sum(row < 250 for row in rows["choice"]) < 40


def test_there_are_at_most_2000():
    rows = choice_rows(examples([f"sentence {i}" for i in range(25_000)]))
    assert len(rows["choice"]) == 2_000


def test_copies_of_a_row_stay_on_one_side():
    texts = [f"sentence {i % 100}" for i in range(1000)]
    rows = choice_rows(examples(texts))
    held = {texts[row] for row in rows["choice"]}
    assert not held & {texts[row] for row in rows["train"]}
    assert 0 < len(rows["choice"]) <= 100


def test_a_second_text_counts(glue):
    train = load_task(TASKS["rte"], glue).splits["train"]
    swapped = Examples.of("train", train.second, train.first, train.labels)
    assert not np.array_equal(choice_rows(train)["choice"], choice_rows(swapped)["choice"])


def test_too_few_rows_are_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"9 training rows .*--learning_rate"):
        choice_rows(examples([f"sentence {i}" for i in range(9)]))


@pytest.mark.parametrize("name", TASKS)
def test_dev_and_test_are_out_of_sight_of_a_choosing_run(name, glue):
    data = load_task(TASKS[name], glue)
    choosing = choice_data(data)
    assert set(choosing.splits) == {"train", "choice"}
    assert choosing.scored_splits == ("choice",)
    assert data.scored_splits == TASKS[name].dev_splits
    assert len(choosing.splits["train"]) + len(choosing.splits["choice"]) == 400
    assert choosing.sha256["train"] != data.sha256["train"]
