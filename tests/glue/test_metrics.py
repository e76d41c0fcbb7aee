"""Metrics against values computed by hand, and the definition of a failed run."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from smallbench.errors import DataError
from smallbench.glue.metrics import compute_metrics, is_failed_run, leaderboard_score
from smallbench.glue.tasks import TASKS

COLA, MRPC, STSB, MNLI = (TASKS[name] for name in ("cola", "mrpc", "stsb", "mnli"))


SCIKIT_AND_SCIPY = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda labels, values: scipy.stats.pearsonr(labels, values)[0],
    "spearman": lambda labels, values: scipy.stats.spearmanr(labels, values)[0],
}


@pytest.mark.parametrize("name", TASKS)
def test_metrics_equal_those_of_scikit_learn_and_scipy_to_the_last_bit(name):
    task, rng = TASKS[name], np.random.default_rng(1)
    for num_rows in (50, 1043):
        if task.is_regression:
            labels, predictions = rng.uniform(0, 5, num_rows).round(1), rng.normal(2, 2, num_rows)
        else:
            labels, predictions = rng.integers(0, task.num_labels, (2, num_rows))
        assert compute_metrics(task, predictions, labels) == {
            metric: SCIKIT_AND_SCIPY[metric](labels, predictions) for metric in task.metrics
        }


@pytest.mark.parametrize("name", TASKS)
def test_quick_metrics_are_the_same_but_for_rounding(name):
    task, rng = TASKS[name], np.random.default_rng(2)
    for num_rows in (2, 7, 1043):
        for kind in range(20):
            if task.is_regression:
                labels, predictions = rng.uniform(0, 5, (2, num_rows)).round(kind % 3)
            else:
                labels, predictions = rng.integers(0, task.num_labels, (2, num_rows))
            if kind == 0:
                predictions = labels
            elif kind in (1, 2):  # constant: all 0, all 1
                predictions = np.full_like(labels, kind - 1)
            elif kind == 3:
                labels = np.zeros_like(labels)
            exact = compute_metrics(task, predictions, labels)
            quick = compute_metrics(task, predictions, labels, quickly=True)
            assert list(quick) == list(exact)
            assert quick == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_quick_metrics_of_extreme_scores_are_scipys(scale):
    generator = np.random.default_rng(0)
    labels, predictions = generator.random(50), scale * generator.random(50)
    quick = compute_metrics(TASKS["stsb"], predictions, labels, quickly=True)
    assert quick == pytest.approx(compute_metrics(TASKS["stsb"], predictions, labels), abs=1e-12)


def test_matthews_equals_the_value_computed_by_hand():
    # TP 3, TN 2, FP 1, FN 2: (3·2 − 1·2) / √((3+1)(3+2)(2+1)(2+2)) = 4 / √240.
    labels = [1, 1, 1, 1, 1, 0, 0, 0]
    predictions = [1, 1, 1, 0, 0, 0, 0, 1]
    metrics = compute_metrics(COLA, np.array(predictions), np.array(labels))
    assert metrics == pytest.approx({"matthews": 4 / math.sqrt(240), "accuracy": 5 / 8})
    assert leaderboard_score(COLA, metrics) == pytest.approx(400 / math.sqrt(240))


def test_f1_takes_its_gold_count_from_the_labels():
    # TP 2, FP 2, FN 1: precision 1/2, recall 2/3, F1 = 4/7.
    labels, predictions = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 1, 0])
    assert compute_metrics(MRPC, predictions, labels) == pytest.approx(
        {"accuracy": 3 / 6, "f1": 4 / 7}
    )


def test_correlations_equal_the_values_computed_by_hand():
    # x − mean: −1, 0, 1; y − mean: −2, −1, 3; Pearson 5 / √(2·14); ranks agree: Spearman 1.
    metrics = compute_metrics(STSB, np.array([1.0, 2.0, 6.0]), np.array([0.0, 1.0, 2.0]))
    assert metrics == pytest.approx({"spearman": 1.0, "pearson": 5 / math.sqrt(28)})


def test_spearman_gives_ties_their_mean_rank():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / √(4.5 · 5).
    predictions, labels = np.array([0.0, 1.0, 1.0, 9.0]), np.array([0.0, 1.0, 2.0, 3.0])
    metrics = compute_metrics(STSB, predictions, labels)
    assert metrics["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf])
def test_undefined_correlations_count_as_zero(value):
    metrics = compute_metrics(STSB, np.full(4, value), np.array([0.0, 1.0, 2.0, 3.0]))
    assert metrics == {"spearman": 0.0, "pearson": 0.0}


def test_constant_classes_score_zero_matthews_and_f1():
    labels = np.array([0, 1, 1, 0])
    assert compute_metrics(COLA, np.ones(4, dtype=int), labels)["matthews"] == 0.0
    assert compute_metrics(MRPC, np.zeros(4, dtype=int), labels)["f1"] == 0.0


def test_accuracy_is_k_over_n():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 37), rng.integers(0, 3, 37)
    accuracy = compute_metrics(MNLI, predictions, labels)["accuracy"]
    assert accuracy * 37 == pytest.approx(int((labels == predictions).sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [([1, 0], [1], "one prediction for each"), ([], [], "one prediction"), ([2], [1], "class 2")],
)
def test_unusable_predictions_are_refused(predictions, labels, message):
    with pytest.raises(DataError, match=message):
        compute_metrics(COLA, np.array(predictions, int), np.array(labels, int))


def test_a_run_no_better_than_the_majority_class_failed():
    labels = np.array([1, 1, 1, 0])
    assert is_failed_run(MRPC, np.array([1, 1, 1, 1]), labels)
    assert is_failed_run(MRPC, np.array([0, 0, 0, 0]), labels)
    assert is_failed_run(MRPC, np.array([1, 1, 0, 0]), labels)  # 3/4, the majority's share
    assert not is_failed_run(MRPC, np.array([1, 1, 1, 0]), labels)
    assert is_failed_run(STSB, np.array([2.0, 2.0, 2.0, 2.0]), np.arange(4.0))
    assert is_failed_run(STSB, np.array([4.0, 3.0, 2.0, 1.0]), np.arange(4.0))
    assert not is_failed_run(STSB, np.array([1.0, 3.0, 2.0, 4.0]), np.arange(4.0))
    assert not is_failed_run(COLA, np.array([1, 0, 1, 0]), labels)  # Matthews > 0
