"""GLUE's metrics, computed by scikit-learn and SciPy.

All values are fractions or correlations; `leaderboard_score` multiplies the ranking metric by 100
for tables. A constant prediction makes a correlation undefined, which counts as 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import dice
from scipy.stats import pearsonr, rankdata, spearmanr

from smallbench.errors import DataError
from smallbench.glue.tasks import Task

Values = NDArray[Any]
"""[N] classes (integers) or scores (floats)."""


Metrics = Mapping[str, Callable[[Values, Values], float]]
"""Functions of gold labels and predictions, by name: F1 counts the positives among the first."""


def _metrics() -> Metrics:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": accuracy_score,
        "f1": partial(f1_score, zero_division=0.0),
        "matthews": matthews_corrcoef,
        "pearson": lambda labels, predictions: pearsonr(labels, predictions).statistic,
        "spearman": lambda labels, predictions: spearmanr(labels, predictions).statistic,
    }


def _correlation(a: Values, b: Values) -> float:
    if (b == b[0]).all():
        return math.nan
    b = b / np.abs(b).max()  # squares of what a file may hold would overflow
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


# The same up to rounding. scikit-learn and SciPy take a millisecond to validate their arguments,
# too much for a board of hundreds of entries.
_QUICK_METRICS: Metrics = {
    "accuracy": lambda labels, predictions: np.mean(labels == predictions),
    # F1 is Dice's coefficient of the rows labelled 1 and the rows predicted 1; Matthews'
    # correlation of two classes is Pearson's.
    "f1": lambda labels, predictions: 1.0 - dice(labels == 1, predictions == 1),
    "matthews": _correlation,
    "pearson": _correlation,
    "spearman": lambda labels, predictions: _correlation(rankdata(labels), rankdata(predictions)),
}


def compute_metrics(
    task: Task, predictions: Values, labels: Values, *, quickly: bool = False
) -> dict[str, float]:
    """Return every metric of `task`, the ranking one first, from predictions and labels, both [N].

    With `quickly`, the last bits may differ from scikit-learn's. Raises `DataError` for different
    lengths, no rows, or a class that the task does not have.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise DataError(
            f"{task.name}: predictions of shape {predictions.shape} for labels of shape "
            f"{labels.shape}; expected one prediction for each example"
        )
    if not task.is_regression:
        unknown = predictions[~np.isin(predictions, range(task.num_labels))]
        if len(unknown):
            raise DataError(
                f"{task.name}: predicted class {unknown.min()}, expected 0 to {task.num_labels - 1}"
            )
    elif not np.isfinite(predictions).all():
        return dict.fromkeys(task.metrics, 0.0)
    scores, functions = {}, _QUICK_METRICS if quickly else _metrics()
    with warnings.catch_warnings():
        # Constant predictions: the correlation is NaN, which becomes 0 below.
        warnings.simplefilter("ignore")
        for name in task.metrics:
            value = float(functions[name](labels, predictions))
            scores[name] = 0.0 if math.isnan(value) else value
    return scores


def leaderboard_score(task: Task, metrics: Mapping[str, float]) -> float:
    """Return the task's cell in a table: its ranking metric × 100."""
    return 100.0 * metrics[task.ranking_metric]


def is_failed_run(
    task: Task, predictions: Values, labels: Values, *, score: float | None = None
) -> bool:
    """Return whether the run scores no better than the majority class.

    Mosbach et al. 2021, arXiv 2006.04884, §3. The majority class scores its share of the rows in
    accuracy and 0 in a correlation; a constant prediction always counts as failed. `score` is the
    ranking metric, if it is known.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if (predictions == predictions[0]).all():
        return True
    if score is None:
        score = compute_metrics(task, predictions, labels)[task.ranking_metric]
    if task.ranking_metric != "accuracy":
        return score <= 0.0
    return bool(score <= np.bincount(labels).max() / len(labels))
