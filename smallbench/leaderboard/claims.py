"""Checks of single claims: dates, digests, positions, splits, the track's rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from math import sqrt
from statistics import fmean

from smallbench.glue.choice import CHOICE
from smallbench.glue.metrics import compute_metrics
from smallbench.glue.protocols import CHOICE_SEED
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.copies import copied_runs
from smallbench.leaderboard.entry import PEAK_KEY, StoredRun
from smallbench.leaderboard.finding import Found
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.gold import Labels
from smallbench.leaderboard.scores import RunScores
from smallbench.leaderboard.track_table import TRACKS
from smallbench.leaderboard.tracks import highest, protocol_of, tracks_of

FIRST_DATE = "2021-09-22"
"""Date of the paper; no entry is older."""
MAX_SPLIT_DIFFERENCE = 10.0
"""Points between two dev splits of a task; MNLI's differ by less than two in known systems."""
MAX_GAIN = 15.0
"""Points of dev above the rows that chose the rate; 35 measured tasks have -24 to +6.6."""
NO_POSITION_TABLE = ("deberta",)


def date_in_range(submission: Submission, scores: RunScores) -> Found:
    """The date exists and is not before the benchmark's."""
    try:
        date.fromisoformat(submission.entry.date)
    except ValueError:
        yield "rejected", f"Invalid date {submission.entry.date}: there is no such day"
    if submission.entry.date < FIRST_DATE:
        yield "rejected", f"date {submission.entry.date} is before the benchmark ({FIRST_DATE})"


def digests(submission: Submission, scores: RunScores) -> Found:
    """Digests are plausible hashes."""
    entry = submission.entry.measured
    named = {
        "provenance.git_commit": entry.provenance.git_commit,
        "provenance.config_digest": entry.provenance.config_digest,
        "provenance.train_log_sha256": entry.provenance.train_log_sha256,
        "data.sha256": entry.data.sha256,
        "finetune.model_sha256": entry.finetune.model_sha256,
        "links.huggingface_revision": submission.entry.links.huggingface_revision,
    }
    for name, value in named.items():
        if value is not None and len(set(value)) < 3:
            yield "rejected", f"{name} {value[:12]}… is not a plausible digest"


def positions(submission: Submission, scores: RunScores) -> Found:
    """The table of positions is at least as long as the inputs."""
    entry = submission.entry.measured
    model, length = entry.model, entry.pretrain.sequence_length
    longest = max([length, *(stage.sequence_length for stage in entry.pretrain.stages)])
    table = model.max_position_embeddings
    if model.architecture in NO_POSITION_TABLE or table is None:
        return
    tuned = entry.finetune.max_length
    for what, least in ((f"inputs of {longest}", longest), (f"finetune.max_length {tuned}", tuned)):
        if table < least:
            yield "rejected", f"max_position_embeddings {table} is shorter than {what}"


def splits(submission: Submission, scores: RunScores) -> Found:
    """The two dev splits of a task have similar scores."""
    for run in submission.runs:
        task = TASKS[run.task]
        if len(run.predictions) < 2 or not scores.gold.has(run.task):
            continue
        metrics = scores[run].metrics
        for split in run.predictions:
            other = metrics.get(f"{task.ranking_metric} {split}")
            if other is None or abs(other - metrics[task.ranking_metric]) < MAX_SPLIT_DIFFERENCE:
                continue
            yield (
                "flagged",
                f"{run.predictions[split]} scores {other:.1f}, dev "
                f"{metrics[task.ranking_metric]:.1f}: one of them is implausible",
            )
            return


def choice(submission: Submission, scores: RunScores) -> Found:
    """The chosen learning rate is the best on the part of train that selects it."""
    finetune = submission.entry.finetune
    assert finetune is not None
    protocol = protocol_of(finetune)
    for name, rate in finetune.chosen.items() if protocol else ():
        assert protocol is not None
        runs = [run for run in submission.choices if run.task == name]
        known = scores.gold.choices.get(name)
        settings = {(run.seed, run.epochs) for run in runs}
        if (
            tuple(sorted(run.learning_rate for run in runs)) != protocol.learning_rates
            or settings != {(CHOICE_SEED, protocol.epochs(TASKS[name]))}
        ):  # fmt: skip
            yield "not done", f"{name}: the predictions that chose its learning rate are missing"
        elif known is None:
            yield "not done", f"{name}: labels of the rows that chose its learning rate are missing"
        elif finetune.choice_sha256.get(name) != known.sha256:
            yield "not done", f"{name}: its learning rate was chosen on other rows of train"
        else:
            answers = {r.learning_rate: submission.predictions[r.predictions[CHOICE]] for r in runs}
            for a, b, but in copied_runs(name, answers):
                yield "flagged", f"{name}: rates {a:g} and {b:g} gave the same answers{but}"
            yield from _best_rate(scores, runs, rate, known.labels)


def _best_rate(
    scores: RunScores, runs: Sequence[StoredRun], chosen: float, labels: Labels
) -> Found:
    """Compute the scores again; a difference of rounding does not count."""
    task, found = TASKS[runs[0].task], {}
    for run in runs:
        path = run.predictions[CHOICE]
        values = scores.submission.predictions[path]
        if len(values) != len(labels):
            yield "rejected", f"{path} has {len(values):,} rows, expected {len(labels):,}"
            return
        metrics = compute_metrics(task, values, labels, quickly=True)
        found[run.learning_rate] = 100 * metrics[task.ranking_metric]
    rate = max(found, key=lambda rate: found[rate])
    if found.get(chosen, -100.0) < found[rate] - 1e-9:
        yield (
            "rejected",
            f"{task.name}: learning rate {chosen:g} was chosen, but {rate:g} has the best score "
            f"({found[rate]:.2f}) on the part of train that chooses",
        )
        return
    on_dev = [run for run in scores.submission.runs if run.task == task.name]
    if not on_dev or not scores.gold.has(task.name):
        return
    answers = [scores.submission.predictions[run.predictions[CHOICE]] for run in runs]
    is_empty = all((values == values[0]).all() for values in answers)
    if is_empty and not any(scores[run].failed for run in on_dev):
        why = "every run that chose its learning rate has constant answers, but runs on dev learned"
        yield "not done", f"{task.name}: {why}"
    gain = fmean(scores[run].metrics[task.ranking_metric] for run in on_dev) - found[rate]
    rows = (len(labels), len(scores.gold.labels[task.name]["dev"]))
    deviation = 50.0 if task.ranking_metric == "accuracy" else 100.0  # at most, of one row
    if gain > max(MAX_GAIN, 4 * deviation * sqrt(sum(1 / num for num in rows))):
        what = "more than the part of train that chose the learning rate"
        yield "flagged", f"{task.name}: dev scores {gain:.1f} points {what}"


def track(submission: Submission, scores: RunScores) -> Found:
    """At least one track of its protocol admits the entry; others are reported with a reason."""
    entry, log = submission.entry.measured, submission.train_log
    if protocol_of(entry.finetune) is None:
        return  # best dev scores, which no track ranks
    name = entry.finetune.protocol
    reasons = {t: r for t, r in tracks_of(submission.entry, log).items()
               if TRACKS[t].protocol == name}  # fmt: skip
    admitted = [TRACKS[name] for name, found in reasons.items() if not found]
    for name, found in reasons.items():
        for reason in found:
            if admitted:
                yield "flagged", f"not in track {name!r}, but in {admitted[0].name!r}: {reason}"
            else:
                yield "rejected", f"no track admits it; track {name!r}: {reason}"
    if log and any(t.max_memory_bytes for t in admitted) and highest(log, PEAK_KEY) is None:
        yield "not done", "the log has no peak memory, so its use of memory is not proven"
