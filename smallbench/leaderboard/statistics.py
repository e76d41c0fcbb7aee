"""Bootstrap of one task's score over dev examples and fine-tuning seeds.

A draw takes the dev examples again with replacement (the same ones for every run: they share the
dev set) and the seeds again with replacement, and computes the score from what it took. Runs that
failed are not drawn here: `ranking` accounts for them, and for the seed of the pretraining.

Draws of examples depend on the task and on how many rows it has, and on nothing else. So every
entry meets the same ones, and the difference of two entries' draws is the paired bootstrap.

Shapes: R draws, S runs of a task, N examples, G groups of examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.glue.tasks import TASKS, Task

Floats = NDArray[np.floating[Any]]
Values = NDArray[Any]
"""[N] or [S, N] classes (integers) or scores (floats)."""

NUM_DRAWS = 10_000
CONFIDENCE = 0.95
MAX_GROUPS = 1024
"""Number of equal random groups that are drawn if there are more than twice as many examples. For
means and counts the variance is the same, at a fortieth of QQP's work (Wolter 2007, §2)."""
NUM_RANKED_DRAWS = 2_500
"""Draws of a rank correlation, which costs as much as all other tasks together; they are repeated.
Their standard deviation is known to 1.4 %."""
CHUNK = 500
"""Draws that are summed at a time: they fit into the processor's cache."""


# ---- one task


def bootstrap_task(
    task: Task, predictions_SN: Values, labels_N: Values, *, num_draws: int = NUM_DRAWS
) -> Floats:
    """Return [R] scores × 100: the mean over runs of the task's ranking metric, resampled."""
    scores_SR = draw_scores(task, predictions_SN, labels_N, num_draws=num_draws)
    return mean_of_runs(task, scores_SR, predictions_SN)


def draw_scores(
    task: Task, predictions_SN: Values, labels_N: Values, *, num_draws: int = NUM_DRAWS
) -> Floats:
    """Return [S, R] scores × 100: each run's ranking metric on the examples of each draw."""
    metric = _METRICS[task.ranking_metric]
    return 100.0 * metric(np.asarray(predictions_SN), np.asarray(labels_N), task.name, num_draws)


def mean_of_runs(task: Task, scores_SR: Floats, predictions_SN: Values) -> Floats:
    """[R] the mean over runs, which are drawn too.

    Runs differ by their seeds and by luck on single examples. That luck is in the draws of examples
    already; drawn once more with the runs, intervals of 95 % covered 99 %. So the runs' deviations
    are shrunk to the part that is the seeds' (Davison & Hinkley 1997, §3.8).
    """
    num_runs, num_draws = scores_SR.shape
    mean_R: Floats = scores_SR.mean(axis=0)
    if num_runs == 1:
        return mean_R
    run_S = scores_SR.mean(axis=1)
    luck_SR = scores_SR - run_S[:, None] - mean_R + run_S.mean()
    luck_variance = (luck_SR**2).sum() / num_draws / (num_runs - 1)
    variance = run_S.var(ddof=1)
    share = max(0.0, 1 - luck_variance / variance) if variance > 0 else 0.0
    move_S = np.sqrt(share) * (run_S - run_S.mean())
    taken = _taken_runs(np.asarray(predictions_SN), task.name, num_draws)
    moves_R: Floats = move_S[taken].mean(axis=0)
    return mean_R + moves_R


def _taken_runs(predictions_SN: Values, name: str, num_draws: int) -> NDArray[np.uint16]:
    """Return [S − 1, R] the runs of each draw.

    S − 1 of S are drawn: the variance of their mean is that of the mean of S runs. A draw of S
    would have (S − 1)/S of it, two thirds with three seeds (McCarthy & Snowden 1985). Seeded by the
    predictions, since the seeds of two models are independent.
    """
    num_runs = len(predictions_SN)
    content = np.ascontiguousarray(predictions_SN).tobytes()
    rng = _generator("runs", name, hashlib.sha256(content).hexdigest())
    return rng.integers(0, num_runs, (num_runs - 1, num_draws), dtype=np.uint16)


@lru_cache(maxsize=16)
def _example_weights(name: str, num: int, num_draws: int) -> list[NDArray[np.uint8]]:
    """Return how often each example, or group, is in each draw: [num, C] for every C draws."""
    rng = _generator("examples", name, str(num))
    chunks = []
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        flat = rng.integers(0, num, (size, num)) + num * np.arange(size)[:, None]
        counts = np.bincount(flat.ravel(), minlength=size * num).reshape(size, num)
        chunks.append(np.ascontiguousarray(counts.T, dtype=np.uint8))
    return chunks


@lru_cache(maxsize=16)
def _order_of(name: str, num: int) -> NDArray[np.int64] | None:
    """Return [N] examples in an order in which every `MAX_GROUPS`-th is in the same group.

    None if each example is its own group.
    """
    if num <= 2 * MAX_GROUPS:
        return None
    return np.argsort(_generator("groups", name, str(num)).permutation(num))


def _generator(*words: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256("\n".join(words).encode()).digest()))


def _drawn_sums(features_FN: NDArray[np.bool_], name: str, num_draws: int) -> Floats:
    """Return [F, R]: the number of examples with each feature in each draw."""
    order = _order_of(name, features_FN.shape[1])
    if order is not None:
        num_rounds = -(-len(order) // MAX_GROUPS)
        padded = np.zeros((len(features_FN), num_rounds * MAX_GROUPS), dtype=np.uint8)
        padded[:, : len(order)] = features_FN[:, order]
        features_FN = padded.reshape(-1, num_rounds, MAX_GROUPS).sum(axis=1, dtype=np.uint16)
    sums_FG = features_FN.astype(np.float32)
    chunks = _example_weights(name, sums_FG.shape[1], num_draws)
    sums = [sums_FG @ weights.astype(np.float32) for weights in chunks]
    return np.concatenate(sums, axis=1, dtype=np.float64)


def _accuracy(predictions_SN: Values, labels_N: Values, name: str, num_draws: int) -> Floats:
    right_SN = predictions_SN == labels_N
    features = np.concatenate([right_SN, np.ones((1, len(labels_N)), dtype=bool)])
    *right, total = _drawn_sums(features, name, num_draws)
    shares: Floats = np.stack(right) / total
    return shares


def _matthews(predictions_SN: Values, labels_N: Values, name: str, num_draws: int) -> Floats:
    """Return Matthews' correlation of two classes; 0 if it is undefined."""
    guessed_SN, gold_N = predictions_SN == 1, labels_N == 1
    features = [guessed_SN, guessed_SN & gold_N, gold_N[None], np.ones_like(gold_N)[None]]
    sums = _drawn_sums(np.concatenate(features), name, num_draws)
    num = len(predictions_SN)
    guessed, both, gold, total = sums[:num], sums[num:-2], sums[-2], sums[-1]
    above = both * total - guessed * gold
    below = np.sqrt(guessed * (total - guessed) * gold * (total - gold))
    scores: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return scores


def _spearman(predictions_SN: Values, labels_N: Values, name: str, num_draws: int) -> Floats:
    """Ranked afresh within each draw, ties at their mean rank; 0 if it is undefined.

    In a draw of N, a group of equal values that has w examples behind b lower ones has the mean
    rank b + (w + 1)/2, and d = 2b + w − N is twice its distance from the middle: whole numbers,
    whose sums are exact. Nothing is sorted again: the groups are passed in order, all draws at
    once. Σ w d² is (N³ − Σ w³)/3. Since Σ g of the gold distances is 0, Σ g d is 2 Σ g c − Σ g w
    with the running sum c of w; the sums over single examples are the same for all runs.
    """
    if num_draws > NUM_RANKED_DRAWS and num_draws % NUM_RANKED_DRAWS == 0:
        found = _spearman(predictions_SN, labels_N, name, NUM_RANKED_DRAWS)
        return np.tile(found, num_draws // NUM_RANKED_DRAWS)
    gold = _gold_distances(np.asarray(labels_N, dtype=np.float64).tobytes(), name, num_draws)
    scores_SR = np.zeros((len(predictions_SN), num_draws))
    for row, values in zip(scores_SR, predictions_SN, strict=True):
        product, cubes = gold.same.copy(), gold.cubes.copy()
        passed, part, run = np.zeros((3, num_draws), dtype=gold.weights.dtype)
        for group in _groups_in_order(values):
            weight, distance = gold.weights[group], gold.distances[group]
            if isinstance(group, list):
                product += (distance * weight).sum(axis=0)
                cubes -= (weight**3).sum(axis=0)
                weight = weight.sum(axis=0, dtype=part.dtype)
                distance = distance.sum(axis=0, dtype=part.dtype)
                product -= distance * weight.astype(np.int64)
                cubes += weight.astype(np.int64) ** 3
            passed += weight
            run += np.multiply(distance, passed, out=part)
        product += 2 * run.astype(np.int64)
        below = np.sqrt(gold.square * ((len(values) ** 3 - cubes) // 3))
        np.divide(product, below, out=row, where=below > 0)
    return scores_SR


@dataclass(frozen=True, eq=False)
class _Gold:
    """The gold labels' part of a rank correlation."""

    weights: Values
    """[N, R] how often each example is in each draw."""
    distances: Values
    """[N, R] these weights times the doubled distance from the middle rank."""
    square: Floats
    """[R] sum of the squared distances."""
    same: Values
    """[R] minus the sum of distances × weights."""
    cubes: Values
    """[R] sum of the weights' third powers."""


@lru_cache(maxsize=2)
def _gold_distances(labels: bytes, name: str, num_draws: int) -> _Gold:
    labels_N = np.frombuffer(labels)
    num = len(labels_N)
    # No sum of products exceeds N³/2.
    dtype = np.dtype(np.int32 if num**3 / 2 < 2**31 else np.int64)
    # Not in groups of examples: ranks are not sums.
    weights_NR = np.concatenate(_example_weights(name, num, num_draws), axis=1, dtype=dtype)
    distances_NR, square = np.empty_like(weights_NR), np.zeros(num_draws)
    passed = np.zeros(num_draws, dtype)
    for group in _groups_in_order(labels_N):
        members = np.atleast_1d(group)
        weight = weights_NR[members].sum(axis=0, dtype=dtype)
        distance = 2 * passed + weight - num
        distances_NR[members] = weights_NR[members] * distance
        square += weight * distance.astype(np.int64) ** 2
        passed += weight
    wide = weights_NR.astype(np.int64)
    same = -(distances_NR * wide).sum(axis=0)
    return _Gold(weights_NR, distances_NR, square, same, (wide**3).sum(axis=0))


def _groups_in_order(values_N: Values) -> Iterator[int | list[int]]:
    """Yield the examples of equal value, lowest first: an index, or several."""
    order = np.argsort(values_N, kind="stable")
    ends = [*(np.flatnonzero(np.diff(values_N[order])) + 1).tolist(), len(order)]
    indices, start = order.tolist(), 0
    for end in ends:
        yield indices[start] if end == start + 1 else indices[start:end]
        start = end


_METRICS = {"accuracy": _accuracy, "matthews": _matthews, "spearman": _spearman}


def prepare_draws(labels: Mapping[str, Mapping[str, Values]]) -> None:
    """Draw the examples of these tasks before processes are forked, which share them."""
    for name, splits in labels.items():
        draw_scores(TASKS[name], splits["dev"][None], splits["dev"])


# ---- intervals


@dataclass(frozen=True)
class Interval:
    """The middle `CONFIDENCE` of the draws."""

    low: float
    high: float


def interval(draws_R: Floats) -> Interval:
    """Return the percentile interval."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws_R, [tail, 100 - tail])
    return Interval(float(low), float(high))


def expected_maximum(scores: Sequence[float], num_trials: int) -> float:
    """Return the expected best of `num_trials` trials, from the distribution of the scores seen.

    Dodge et al. 2019, arXiv 1909.03004, equations 6 and 7: E[max] = Σ x (F(x)ⁿ − F(x−)ⁿ).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    steps = (np.arange(len(ordered) + 1) / len(ordered)) ** num_trials
    return float(ordered @ np.diff(steps))
