"""Check a training log: chained, complete, increasing, and consistent with its speed; thin it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.leaderboard.entry import FLOPS_KEY, PEAK_KEY, MeasuredSections, Stage, link
from smallbench.leaderboard.finding import Found
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.scores import RunScores
from smallbench.leaderboard.tracks import Log
from smallbench.objectives import OBJECTIVES
from smallbench.report.runs import Series
from smallbench.report.scale import thinned

PERCENT = 0.01
Values = NDArray[Any]
"""[N] one value for each record."""

NUM_CURVE_BUCKETS = 120
MIN_POINTS = 200
MAX_GAP = 0.02
"""Limit of the share of all steps between two records; 200 even gaps have 0.005."""
MAX_FLOPS_SHIFT = 0.25
"""Largest distance of the shares of operations and of tokens at a step. A share of masks that
changes linearly, or rows that become longer, shift them by less."""
MAX_LOSS_GROWTH = 10.0
MAX_RESTARTS = 0.1
"""Share of the records that follow a restart, at most: a peak begins anew, and a throughput may be
of a part of the steps. There is a record a minute and a checkpoint every half an hour."""
BYTES_PER_PARAMETER = 2
"""The least on the card; with offload only half-precision weights are there."""
MIN_VARIATION = 1e-4
"""Least relative deviation of step times; measured ones vary by 1 %, invented ones do not."""


def log(submission: Submission, scores: RunScores) -> Found:
    """Check the hash chain first, then the records."""
    entry, lines = submission.entry.measured, submission.train_log
    head = entry.provenance.train_log_sha256
    if not lines:
        if head is not None:
            yield "rejected", "train_log_sha256 is set, but the log is missing"
        else:
            yield "not done", "there is no training log"
        return
    previous = entry.provenance.config_digest
    for number, line in enumerate(lines, start=1):
        previous = link(previous, line)
        if line["sha256"] != previous:
            yield (
                "rejected",
                f"the hash chain breaks at line {number}: this or an earlier line changed",
            )
            return
    if head != previous:
        yield "rejected", "train_log_sha256 is not the last hash of the log"
    if len(lines) < MIN_POINTS:
        yield "rejected", f"{len(lines)} points, expected at least {MIN_POINTS}"
    if len(lines) < 3:
        return
    step = np.array([line["step"] for line in lines], dtype=np.int64)
    tokens = np.array([line["tokens"] for line in lines], dtype=np.int64)
    seconds = np.array([line["seconds"] for line in lines], dtype=np.float64)
    for name, values in (("steps", step), ("tokens", tokens), ("times", seconds)):
        if (np.diff(values) <= 0).any():
            where = int(np.argmax(np.diff(values) <= 0)) + 2
            yield "rejected", f"{name} do not increase at line {where}"
            return
    pretrain = entry.pretrain
    if step[-1] != pretrain.num_steps:
        yield "rejected", f"the last step is {step[-1]:,}, not {pretrain.num_steps:,}"
    if abs(tokens[-1] / pretrain.num_tokens - 1) > PERCENT:
        yield "rejected", f"the log ends at {tokens[-1]:,} tokens, not {pretrain.num_tokens:,}"
    if abs(seconds[-1] / pretrain.gpu_active_seconds - 1) > 5 * PERCENT:
        yield (
            "rejected",
            f"the log ends at {seconds[-1]:,.0f} s, not {pretrain.gpu_active_seconds:,.0f}",
        )
    widest = int(np.diff(step).argmax())
    if np.diff(step)[widest] > max(MAX_GAP * pretrain.num_steps, 1):
        yield "rejected", f"a gap from step {step[widest]:,} to {step[widest + 1]:,}"
    yield from _speed(lines, step, tokens, seconds)
    yield from _progress(entry, lines, step, tokens)
    yield from _losses(entry, lines)
    yield from _memory(entry, lines)


def _progress(entry: MeasuredSections, lines: Log, step: Values, tokens: Values) -> Found:
    """Tokens and operations grow with the steps of the ramps."""
    stages = [Stage(0, 0, 0), *entry.pretrain.stages]
    steps, counts = (
        np.cumsum([float(count) for count in found])
        for found in ([s.num_steps for s in stages], [s.num_tokens for s in stages])
    )
    expected = np.interp(step, steps, counts)
    where = int(np.abs(tokens - expected).argmax())
    if abs(tokens[where] - expected[where]) > 5 * PERCENT * tokens[-1]:
        what = f"{tokens[where]:,} tokens at step {step[where]:,}"
        yield "rejected", f"{what}, but steps × batch × length is {expected[where]:,.0f}"
    flops: list[Any] = [line.get(FLOPS_KEY) for line in lines[1:]]
    if not any(flops):
        return
    if None in flops or any(a >= b for a, b in pairwise(flops)):
        yield "rejected", "train_flops do not increase in every line"
        return
    shift = np.array(flops, dtype=np.float64) / flops[-1] - tokens[1:] / tokens[-1]
    if np.abs(shift).max() > MAX_FLOPS_SHIFT:
        yield "flagged", "train_flops do not grow with the tokens"


def _losses(entry: MeasuredSections, lines: Log) -> Found:
    """Losses are those of a training: known, not negative, not beyond the first, and falling."""
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    if not losses or losses[-1] >= losses[0]:
        yield "flagged", "the loss does not decrease"
    if len(losses) < len(lines) / 2:
        yield "flagged", f"the loss is missing in {len(lines) - len(losses):,} lines"
    if entry.model.objective not in OBJECTIVES:
        return
    for key in ("loss", "mlm_loss"):
        values = [line[key] for line in lines if line[key] is not None]
        first = max([*values[:1], math.log(entry.model.vocab_size or 1)])
        if values and min(values) < 0:
            yield "rejected", f"{key} {min(values):g}: a cross-entropy is not negative"
        elif values and max(values) > MAX_LOSS_GROWTH * first:
            yield "flagged", f"{key} {max(values):g}, but it begins at {first:.3g}"


def _memory(entry: MeasuredSections, lines: Log) -> Found:
    """The peak so far can fall only if the run is restarted."""
    peaks = [line[PEAK_KEY] for line in lines if line.get(PEAK_KEY)]
    if sum(a > b for a, b in pairwise(peaks)) > MAX_RESTARTS * len(lines):
        yield "rejected", f"{PEAK_KEY} falls, although it is the peak so far"
    least = BYTES_PER_PARAMETER * entry.model.num_parameters
    if peaks and max(peaks) < least:
        yield "flagged", f"{PEAK_KEY} {max(peaks):,}: the weights alone have {least:,}"


def _speed(lines: Log, step: Values, tokens: Values, seconds: Values) -> Found:
    """The throughput adds up to the tokens, and step times vary like measured ones."""
    rates = [line["tokens_per_second"] for line in lines[1:]]
    if None in rates:
        yield "rejected", f"throughput is missing at line {rates.index(None) + 2}"
    else:
        counted = np.array(rates, dtype=np.float64) * np.diff(seconds)
        integral = float(counted.sum())
        # Written so that NaN does not pass.
        if not abs(integral / (tokens[-1] - tokens[0]) - 1) <= 5 * PERCENT:
            yield "rejected", f"throughput × time is {integral:,.0f} tokens, not {tokens[-1]:,}"
        wrong = np.abs(counted / np.diff(tokens) - 1) > 0.5
        if wrong.mean() > MAX_RESTARTS:
            yield "rejected", f"throughput × time differs from the tokens in {wrong.sum():,} lines"
    step_times = np.diff(seconds) / np.diff(step)
    if step_times.std() < MIN_VARIATION * step_times.mean():
        yield "rejected", "step times do not vary, so they were not measured"


def curve_points(log: Log) -> list[tuple[int, float]]:
    """Return tokens and loss of a training log, as many points as a screen shows.

    The loss of masked tokens, or the total if there is none.
    """
    key = "mlm_loss" if log and log[-1]["mlm_loss"] is not None else "loss"
    series = Series(tuple(line["tokens"] for line in log), tuple(line[key] for line in log))
    kept = thinned(series, num_buckets=NUM_CURVE_BUCKETS)
    pairs = zip(kept.x, kept.y, strict=True)
    return [(round(x), round(y, 4)) for x, y in pairs if y is not None]
