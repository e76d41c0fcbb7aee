"""How sure a score is: hierarchical bootstrap, paired comparison, tie bands, expected maximum.

A draw takes the dev examples again with replacement (the same ones for every run: they share the
dev set) and the seeds again with replacement, and computes the score from what it took. What the
intervals cover is the score that the same model would have on average over fine-tuning seeds, on
dev sets drawn as this one was; the pretraining's own seed is not part of it.

Draws of examples depend on the task and on how many rows it has, and on nothing else. So every
entry meets the same ones, and the difference of two entries' draws is the paired bootstrap.

Shapes: R draws, S runs of a task, N examples, G groups of examples, E entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from smallbench.glue.tasks import Task

Floats = NDArray[np.floating[Any]]
Values = NDArray[Any]
"""[N] or [S, N] classes (integers) or scores (floats)."""

NUM_DRAWS = 10_000
CONFIDENCE = 0.95
LEAD = 0.95
"""A lead counts where the paired bootstrap gives it at least this probability; else rows tie."""
MAX_GROUPS = 1024
"""More examples than twice this are drawn in so many random groups of equal size: for means and
counts the variance is the same, at a fortieth of QQP's work (Wolter 2007, §2)."""
CHUNK = 500
"""Draws that are ranked at a time: they fit the processor's cache."""


# ---- one task


def bootstrap_task(
    task: Task, predictions_SN: Values, labels_N: Values, *, num_draws: int = NUM_DRAWS
) -> Floats:
    """[R] scores × 100: the mean over runs of the task's ranking metric, drawn again."""
    metric = _METRICS[task.ranking_metric]
    predictions_SN, labels_N = np.asarray(predictions_SN), np.asarray(labels_N)
    scores_SR = 100.0 * metric(predictions_SN, labels_N, task.name, num_draws)
    drawn: Floats = scores_SR.mean(axis=0)
    if len(scores_SR) > 1:
        drawn += _moves_by_runs(scores_SR, _run_weights(predictions_SN, task.name, num_draws))
    return drawn


def _moves_by_runs(scores_SR: Floats, weights_RS: Floats) -> Floats:
    """[R] how far the mean moves when the runs are drawn too.

    Runs differ by their seeds and by luck on single examples. That luck is in the draws of examples
    already; drawn once more with the runs, intervals of 95 % covered 99 %. So the runs' deviations
    are shrunk to the part that is the seeds' (Davison & Hinkley 1997, §3.8).
    """
    run_S = scores_SR.mean(axis=1)
    luck_SR = scores_SR - run_S[:, None] - scores_SR.mean(axis=0) + run_S.mean()
    luck_variance = (luck_SR**2).sum(axis=0).mean() / (len(run_S) - 1)
    variance = run_S.var(ddof=1)
    share = max(0.0, 1 - luck_variance / variance) if variance > 0 else 0.0
    moves: Floats = np.sqrt(share) * (weights_RS @ (run_S - run_S.mean()))
    return moves


def _run_weights(predictions_SN: Values, name: str, num_draws: int) -> Floats:
    """[R, S] shares of the runs in each draw.

    S − 1 of S are drawn: then the variance of their mean is that of the mean of S runs, where a
    draw of S would have (S − 1)/S of it, two thirds with three seeds (McCarthy & Snowden 1985).
    Seeded by the predictions: two models' seeds have nothing to do with each other.
    """
    num_runs = len(predictions_SN)
    content = np.ascontiguousarray(predictions_SN).tobytes()
    rng = _generator("runs", name, hashlib.sha256(content).hexdigest())
    counts = rng.multinomial(num_runs - 1, np.full(num_runs, 1 / num_runs), size=num_draws)
    weights: Floats = counts / (num_runs - 1)
    return weights


@lru_cache(maxsize=16)
def _example_weights(name: str, num: int, num_draws: int) -> NDArray[np.uint8]:
    """[num, R]: how often each example, or group of them, is in each draw."""
    rng = _generator("examples", name, str(num))
    weights = np.empty((num, num_draws), dtype=np.uint8)
    for start in range(0, num_draws, CHUNK):
        size = min(CHUNK, num_draws - start)
        flat = rng.integers(0, num, (size, num)) + num * np.arange(size)[:, None]
        counts = np.bincount(flat.ravel(), minlength=size * num).reshape(size, num)
        weights[:, start : start + size] = counts.T
    return weights


@lru_cache(maxsize=16)
def _group_of(name: str, num: int) -> NDArray[np.int64] | None:
    """[N] the group of each example; None where each is its own."""
    if num <= 2 * MAX_GROUPS:
        return None
    return _generator("groups", name, str(num)).permutation(num) % MAX_GROUPS


def _generator(*words: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256("\n".join(words).encode()).digest()))


def _drawn_sums(features_FN: Values, name: str, num_draws: int) -> Floats:
    """[F, R]: the sum of each feature over the examples of each draw."""
    num = features_FN.shape[1]
    group = _group_of(name, num)
    sums_FG = features_FN.astype(np.float32)
    if group is not None:
        sums_FG = np.stack([np.bincount(group, weights=row) for row in sums_FG]).astype(np.float32)
    weights = _example_weights(name, sums_FG.shape[1], num_draws).astype(np.float32)
    sums: Floats = (sums_FG @ weights).astype(np.float64)
    return sums


def _accuracy(predictions_SN: Values, labels_N: Values, name: str, num_draws: int) -> Floats:
    right_SN = predictions_SN == labels_N
    features = np.concatenate([right_SN, np.ones((1, len(labels_N)), dtype=bool)])
    *right, total = _drawn_sums(features, name, num_draws)
    shares: Floats = np.stack(right) / total
    return shares


def _matthews(predictions_SN: Values, labels_N: Values, name: str, num_draws: int) -> Floats:
    """Two classes; 0 where it is undefined."""
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
    """Ranked afresh within each draw, ties at their mean rank; 0 where it is undefined."""
    num = len(labels_N)
    # Not in groups: ranks are no sums.
    weights_NR = _example_weights(name, num, num_draws)
    middle = (num + 1) / 2  # the mean of ranks, ties or not
    orders = [_Ranking(values) for values in (labels_N, *predictions_SN)]
    scores_SR = np.zeros((len(predictions_SN), num_draws))
    for start in range(0, num_draws, CHUNK):
        columns = slice(start, start + CHUNK)
        weights = weights_NR[:, columns].astype(np.float32)
        gold, *guesses = (ranking(weights) - np.float32(middle) for ranking in orders)
        weighted_gold = weights * gold
        gold_square = np.einsum("nr,nr->r", weighted_gold, gold, dtype=np.float64)
        for row, guess in zip(scores_SR, guesses, strict=True):
            product = np.einsum("nr,nr->r", weighted_gold, guess, dtype=np.float64)
            guess *= guess
            square = np.einsum("nr,nr->r", weights, guess, dtype=np.float64)
            below = np.sqrt(gold_square * square)
            np.divide(product, below, out=row[columns], where=below > 0)
    return scores_SR


class _Ranking:
    """Ranks of fixed values in samples that hold each a given number of times, without sorting."""

    def __init__(self, values_N: Values) -> None:
        self._order = np.argsort(values_N, kind="stable")
        # Behind how many values, and up to how many, each stands in the sorted list.
        self._before = rankdata(values_N, "min").astype(np.int64) - 1
        self._upto = rankdata(values_N, "max").astype(np.int64)

    def __call__(self, weights_NR: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, R] mean ranks, from 1."""
        cumulated = np.zeros((len(weights_NR) + 1, weights_NR.shape[1]), dtype=np.float32)
        np.cumsum(weights_NR[self._order], axis=0, out=cumulated[1:])
        ranks = cumulated[self._before]
        ranks += cumulated[self._upto]
        ranks += 1
        ranks /= 2
        return ranks  # type: ignore[no-any-return]


_METRICS = {"accuracy": _accuracy, "matthews": _matthews, "spearman": _spearman}


# ---- several tasks, several entries


@dataclass(frozen=True)
class Interval:
    """The middle `CONFIDENCE` of the draws."""

    low: float
    high: float


def interval(draws_R: Floats) -> Interval:
    """Percentile interval."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws_R, [tail, 100 - tail])
    return Interval(float(low), float(high))


def probability_better(a_R: Floats, b_R: Floats) -> float:
    """P(Δ > 0) of a over b from their paired draws; draws that are equal count half."""
    return float((a_R > b_R).mean() + (a_R == b_R).mean() / 2)


@dataclass(frozen=True)
class RankRange:
    """Places that an entry may hold: `2–4`, or one where nobody ties with it."""

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def leads(draws_ER: Floats) -> NDArray[np.bool_]:
    """[E, E] whether the lead of the row's entry over the column's counts.

    `probability_better` of every pair, of an entry's all at once.
    """
    num, num_draws = draws_ER.shape
    lows, highs = (draws_ER.min(axis=1), draws_ER.max(axis=1)) if num else (np.empty(0),) * 2
    found = np.zeros((num, num), dtype=bool)
    for a in range(1, num):
        better = (lows[a] > highs[:a]).astype(np.float64)  # right where all draws agree
        overlapping = np.flatnonzero((lows[a] <= highs[:a]) & (highs[a] >= lows[:a]))
        if len(overlapping):
            first = overlapping[0]
            ours, others = draws_ER[a], draws_ER[first:a]
            wins = np.count_nonzero(ours > others, axis=1) / num_draws
            # Between these there is no lead, were all the other draws equal.
            open_ones = np.flatnonzero((wins <= 1 - LEAD) | (wins >= 2 * LEAD - 1))
            equal = np.count_nonzero(ours == others[open_ones], axis=1) / num_draws
            wins[open_ones] += equal / 2
            better[first:] = wins
        found[a, :a] = better >= LEAD
        found[:a, a] = better <= 1 - LEAD
    return found


def rank_ranges(leads_EE: NDArray[np.bool_]) -> list[RankRange]:
    """For each entry 1 + those with a counted lead over it, up to E − those that it leads."""
    ahead, behind = leads_EE.sum(axis=0).tolist(), leads_EE.sum(axis=1).tolist()
    return [RankRange(1 + a, len(leads_EE) - b) for a, b in zip(ahead, behind, strict=True)]


def expected_maximum(scores: Sequence[float], num_trials: int) -> float:
    """The best of `num_trials` trials to expect, from the distribution of the scores seen.

    Dodge et al. 2019, arXiv 1909.03004, equations 6 and 7: E[max] = Σ x (F(x)ⁿ − F(x−)ⁿ).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    steps = (np.arange(len(ordered) + 1) / len(ordered)) ** num_trials
    return float(ordered @ np.diff(steps))
