"""Draws equal the metrics of the drawn rows, intervals cover, and both are reproducible."""

import math
import subprocess
import sys

import numpy as np
import pytest

from smallbench.glue.metrics import compute_metrics
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import statistics
from smallbench.leaderboard.statistics import (
    MAX_GROUPS,
    NUM_DRAWS,
    NUM_RANKED_DRAWS,
    bootstrap_task,
    draw_scores,
    expected_maximum,
    interval,
    mean_of_runs,
)
from tests.leaderboard.synthetic import LEVELS, answers, synthetic_gold


def runs(task, labels, num, rng, shift=0.0):
    level, spread = LEVELS[task]
    abilities = level + shift + rng.normal(0, spread / 100, num)
    return np.stack([answers(task, labels, ability=a, rng=rng) for a in abilities])


@pytest.mark.parametrize("name", TASKS)
def test_a_draw_is_the_metric_of_the_examples_that_it_took(name):
    """scikit-learn's and SciPy's on the drawn rows, with ties and repetitions."""
    task, rng = TASKS[name], np.random.default_rng(1)
    labels = synthetic_gold(scale=0.02).labels[name]["dev"]
    predictions = runs(name, labels, 1, rng)
    if task.is_regression:
        labels, predictions = labels.round(), predictions.round(1)
    drawn = bootstrap_task(task, predictions, labels, num_draws=700)  # more than one chunk
    weights = np.concatenate(statistics._example_weights(name, len(labels), 700), axis=1)
    for draw in (0, 1, 499, 500, 699):
        rows = np.repeat(np.arange(len(labels)), weights[:, draw])
        assert len(rows) == len(labels)
        expected = (
            100 * compute_metrics(task, predictions[0, rows], labels[rows])[task.ranking_metric]
        )
        assert drawn[draw] == pytest.approx(expected, abs=2e-4 if task.is_regression else 1e-9)


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_a_constant_prediction_scores_0_in_every_draw(name):
    labels = synthetic_gold(scale=0.05).labels[name]["dev"]
    drawn = bootstrap_task(TASKS[name], np.ones((2, len(labels)), dtype=int), labels, num_draws=50)
    assert (drawn == 0).all()


def test_groups_of_examples_have_the_variance_of_single_ones():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 40_430)
    right = rng.random(len(labels)) < 0.89
    predictions = np.where(right, labels, 1 - labels)[None]
    assert (np.sort(statistics._order_of("qqp", len(labels))) == np.arange(len(labels))).all()
    assert len(labels) > 2 * MAX_GROUPS
    drawn = bootstrap_task(TASKS["qqp"], predictions, labels)
    assert drawn.mean() == pytest.approx(100 * right.mean(), abs=0.01)
    # σ of a proportion; that of 1,024 groups is itself known to 1/√(2 · 1023) = 2.2 %.
    assert drawn.std() == pytest.approx(100 * right.std() / math.sqrt(len(labels)), rel=0.08)


def test_seeds_add_the_variance_of_their_mean():
    """Two runs that differ by a constant number of right rows, on very many examples."""
    labels = np.zeros(20_000, dtype=int)
    predictions = np.zeros((3, len(labels)), dtype=int)
    for run, wrong in enumerate((1000, 2000, 6000)):
        predictions[run, :: len(labels) // wrong][:wrong] = 1
    drawn = bootstrap_task(TASKS["qnli"], predictions, labels)
    scores = 100 * (predictions == 0).mean(axis=1)
    assert drawn.mean() == pytest.approx(scores.mean(), abs=0.1)
    assert drawn.std() == pytest.approx(scores.std(ddof=1) / math.sqrt(3), rel=0.03)


def test_luck_on_single_examples_is_not_drawn_again_with_the_runs():
    """Of the runs' variance 4, a part of 1 is luck, which is in the draws of examples already."""
    rng = np.random.default_rng(3)
    luck_SR = rng.normal(0, 1, (3, NUM_DRAWS))
    scores_SR = 80 + np.array([[-2.0], [0.0], [2.0]]) + luck_SR
    drawn = mean_of_runs(TASKS["qnli"], scores_SR, rng.integers(0, 2, (3, 100)))
    assert drawn.mean() == pytest.approx(80, abs=0.1)
    assert drawn.var() == pytest.approx(1 / 3 + (4 - 1) / 3, rel=0.06)


def test_the_few_draws_of_a_rank_correlation_are_repeated():
    labels, predictions = np.random.default_rng(4).normal(size=(2, 20))
    scores_R = draw_scores(TASKS["stsb"], predictions[None], labels)[0]
    parts = scores_R.reshape(-1, NUM_RANKED_DRAWS)
    assert parts.size == NUM_DRAWS
    assert (parts == parts[0]).all()


PROGRAM = """
import numpy as np
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.statistics import bootstrap_task
rng = np.random.default_rng(0)
for name in ("cola", "stsb", "rte"):
    labels = rng.integers(0, 2, 200) if name != "stsb" else rng.random(200)
    predictions = rng.integers(0, 2, (3, 200)) if name != "stsb" else rng.random((3, 200))
    print(bootstrap_task(TASKS[name], predictions, labels, num_draws=300).tobytes().hex())
"""


def test_draws_are_equal_in_every_process():
    command = [sys.executable, "-c", PROGRAM]
    outputs = {
        subprocess.run(
            command, capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in "12"
    }
    assert len(outputs) == 1


# ---- coverage


def draw_board(rng, sizes, hardness, num_examples=None, num_seeds=None):
    """One model's predictions on dev sets drawn anew: rows are hard or easy, seeds good or bad.

    The more `hardness` varies from row to row, the more seeds agree.
    """
    board = {}
    for name, task in TASKS.items():
        size, num = num_examples or sizes[name], num_seeds or task.default_num_seeds
        level, spread = LEVELS[name]
        if task.is_regression:
            labels = rng.uniform(0, 5, size)
            shared = rng.normal(0, 0.7, size)
            own = rng.normal(0, 0.4, (num, size)) * rng.lognormal(0, 0.1, (num, 1))
            board[name] = labels + shared + own, labels
            continue
        labels = rng.choice(task.num_labels, size, p=[0.31, 0.69] if name == "cola" else None)
        logit = math.log(level / (1 - level)) * 1.35
        seeds = rng.normal(0, spread / 100 / (level * (1 - level)), (num, 1))
        right = rng.random((num, size)) < 1 / (
            1 + np.exp(rng.normal(0, hardness, size) - logit - seeds)
        )
        other = (labels + rng.integers(1, task.num_labels, (num, size))) % task.num_labels
        board[name] = np.where(right, labels, other), labels
    return board


def truth(rng, hardness):
    """Per task the mean score over many seeds on a dev set too large to matter."""
    found = {}
    for name, (predictions, labels) in draw_board(rng, {}, hardness, 20_000, 60).items():
        task = TASKS[name]
        scores = [compute_metrics(task, p, labels)[task.ranking_metric] for p in predictions]
        found[name] = 100 * np.mean(scores)
    return found


SIZES = {"cola": 400, "sst2": 400, "mrpc": 408, "stsb": 250, "qqp": 400, "mnli": 400, "qnli": 400,
         "rte": 277}  # fmt: skip


def covered(num_boards, rng, hardness):
    """[boards, tasks + AVG]: whether each interval holds the model's true score."""
    true = truth(rng, hardness)
    found = []
    for _ in range(num_boards):
        drawn = {
            name: bootstrap_task(TASKS[name], predictions, labels, num_draws=1000)
            for name, (predictions, labels) in draw_board(rng, SIZES, hardness).items()
        }
        pairs = [(interval(drawn[name]), true[name]) for name in TASKS]
        average = np.mean(list(drawn.values()), axis=0)
        pairs.append((interval(average), np.mean(list(true.values()))))
        found.append([i.low <= value <= i.high for i, value in pairs])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("hardness", [1.5, 5.0])
def test_a_95_percent_interval_of_avg_covers_the_true_score_in_93_to_97_percent_of_1000_boards(
    hardness,
):
    """True: the mean over seeds and over dev sets like this one, of one pretrained model."""
    share = covered(1000, np.random.default_rng(20), hardness).mean(axis=0)
    print(dict(zip([*TASKS, "AVG"], share.round(3).tolist(), strict=True)))
    assert 0.93 <= share[-1] <= 0.97
    # A task alone has 3 to 5 seeds and its own skew; its interval is a little less sure.
    assert (share[:-1] >= 0.91).all()
    assert (share[:-1] <= 0.985).all()


def test_expected_maximum_equals_the_hand_computed_one():
    # n = 2 of {1, 2, 3}: pairs (9): max is 1 once, 2 three times, 3 five times.
    assert expected_maximum([3, 1, 2], 2) == pytest.approx((1 + 2 * 3 + 3 * 5) / 9)
    assert expected_maximum([3, 1, 2], 1) == pytest.approx(2)
    assert expected_maximum([70, 70], 5) == 70
    assert expected_maximum([1, 2, 3], 1000) == pytest.approx(3)
