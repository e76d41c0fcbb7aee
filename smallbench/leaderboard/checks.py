"""Checks of a well-formed submission: each is a function, listed in `CHECKS`.

A check yields its findings; without findings it passes. *rejected*: impossible or forbidden.
*flagged*: a person should look at it. *not done*: evidence is missing, so the tier of the entry is
at most *claimed*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from smallbench.config import digest, flatten
from smallbench.errors import ConfigError
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import claims, costs, log_check, public_checks
from smallbench.leaderboard.compute import count_parameters
from smallbench.leaderboard.configuration import configuration
from smallbench.leaderboard.copies import copied_runs
from smallbench.leaderboard.entry import SIZE_NAMES, Tier
from smallbench.leaderboard.finding import Finding, Found
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.gold import Labels
from smallbench.leaderboard.scores import RunScores, tasks_of, unranked_reasons
from smallbench.leaderboard.text import show
from smallbench.leaderboard.tracks import encoder_of, protocol_of
from smallbench.models.flops import SCORE_TERMS
from smallbench.objectives import OBJECTIVES
from smallbench.plugins import is_reference

Check = Callable[[Submission, RunScores], Found]
PERCENT = 0.01
MAX_TRIALS = 10_000
MAX_IDLE = 10
"""Limit of the whole time over the time of the device; measured runs have 1.02 to 1.03."""
MAX_RANDOM = {"cola": 20.0, "stsb": 40.0, "rte": 62.0}
"""Dev scores of random weights on tasks that need pretraining; measured: 7, 19 and 50."""


def run_checks(submission: Submission, scores: RunScores) -> list[Finding]:
    """Run every check that applies to the entry's tier, in the order of `CHECKS`."""
    findings: list[Finding] = []
    applicable = UNRANKED_CHECKS.get(submission.entry.tier, MEASURED_CHECKS)
    for name, check in CHECKS.items():
        if name not in applicable:
            continue
        if name in SCORED_CHECKS and any(finding.verdict == "rejected" for finding in findings):
            # Scoring takes the most time, and a rejected entry shows no scores.
            findings.append(Finding(name, "not done", "rejected before"))
            continue
        found = [Finding(name, verdict, reason) for verdict, reason in check(submission, scores)]
        findings += found or [Finding(name, "passed")]
    return findings


# ---- texts and links


def _tier(submission: Submission, scores: RunScores) -> Found:
    if submission.entry.tier == "verified":
        yield "rejected", "a submitter cannot set tier 'verified'; ask for 'logged'"


def _reported(submission: Submission, scores: RunScores) -> Found:
    yield from public_checks.quoted_findings(submission.entry)
    if all(getattr(submission.entry.model, name) is not None for name in SIZE_NAMES):
        yield from _sizes(submission, scores)


# ---- the model and its pretraining


def _model(submission: Submission, scores: RunScores) -> Found:
    entry = submission.entry.measured
    model, settings = entry.model, entry.provenance.config
    if digest(settings) != entry.provenance.config_digest:
        yield "rejected", "config_digest does not match the configuration"
    if model.objective not in OBJECTIVES and not is_reference(model.objective):
        # A run writes its own objective as FILE.py:NAME or package.module:NAME.
        yield "rejected", f"unknown objective {show(model.objective)!r}"
    flat = flatten(settings)
    for name, value in vars(model).items():
        configured = flat.get(f"model.{name}", flat.get(f"objective.{name}"))
        if configured is not None and configured != value:
            yield "rejected", f"model.{name} {value}, but {configured} in the configuration"


def _sizes(submission: Submission, scores: RunScores) -> Found:
    """Sizes and numbers of parameters fit together; random weights have no teacher."""
    model = submission.entry.model
    if submission.entry.tier == "reference" and (not model.from_scratch or model.distilled_from):
        yield "rejected", "random weights are from_scratch and not distilled_from another model"
    unknown = [name for name in SIZE_NAMES if getattr(model, name) is None]
    if unknown and model.architecture in SCORE_TERMS:
        yield "rejected", f"model.{unknown[0]} of {model.architecture!r} is missing"
    try:
        encoder = encoder_of(submission.entry)
    except ConfigError as error:
        yield "rejected", f"invalid sizes for {show(model.architecture)}: {show(str(error))}"
        return
    if encoder is None:
        yield "not done", f"parameters of {model.architecture!r} cannot be counted here"
        return
    count = count_parameters(encoder)
    counts = {
        "num_parameters": count.total,
        "num_parameters_without_embeddings": count.without_embeddings,
    }
    for name, counted in counts.items():
        claimed = getattr(model, name)
        if claimed is not None and abs(claimed / counted - 1) > PERCENT:
            yield "rejected", f"{name} {claimed:,}, but the sizes give {counted:,}"


def _data(submission: Submission, scores: RunScores) -> Found:
    data, pretrain = submission.entry.measured.data, submission.entry.measured.pretrain
    if data.contains_glue:
        yield "rejected", "the data contain text of GLUE's dev or test sets"
    epochs = pretrain.num_tokens / data.unique_tokens
    if abs(epochs / data.epochs - 1) > PERCENT:
        yield "rejected", f"epochs {data.epochs:g}, but tokens over unique tokens are {epochs:g}"


def _tokens(submission: Submission, scores: RunScores) -> Found:
    entry = submission.entry.measured
    pretrain = entry.pretrain
    steps = sum(stage.num_steps for stage in pretrain.stages)
    if steps != pretrain.num_steps:
        yield "rejected", f"the ramps have {steps:,} steps, num_steps is {pretrain.num_steps:,}"
    tokens = sum(stage.num_tokens for stage in pretrain.stages)
    if abs(pretrain.num_tokens / tokens - 1) > PERCENT:
        yield (
            "rejected",
            f"num_tokens {pretrain.num_tokens:,}, but steps × batch × length is {tokens:,}",
        )
    flat = flatten(entry.provenance.config)
    if flat.get("schedule.along") in ("hours", "flops"):  # such a run ignores max_steps
        flat.pop("train.max_steps", None)
    if flat.get("train.precision") == "auto":
        del flat["train.precision"]
    for key, value in (
        ("train.max_steps", pretrain.num_steps),
        ("train.global_batch_size", pretrain.global_batch_size),
        ("sequence_length", pretrain.sequence_length),
        ("train.seed", pretrain.seed),
        ("train.precision", pretrain.precision),
    ):
        if flat.get(key, value) != value:
            yield "flagged", f"{key} {flat[key]} in the configuration, {value} in the entry"
    longer = flat.get("then.sequence_length")
    if longer is not None and longer not in [stage.sequence_length for stage in pretrain.stages]:
        yield "flagged", f"then.sequence_length {longer} in the configuration, but no such ramp"
    if pretrain.gpu_active_seconds > pretrain.wall_seconds * (1 + PERCENT):
        yield "rejected", "gpu_active_seconds exceed wall_seconds"
    if pretrain.wall_seconds > MAX_IDLE * pretrain.gpu_active_seconds:
        yield "flagged", f"wall_seconds are over {MAX_IDLE} × gpu_active_seconds"


def _provenance(submission: Submission, scores: RunScores) -> Found:
    provenance = submission.entry.measured.provenance
    if provenance.dirty:
        yield "not done", "the code differed from its commit, so it cannot be looked up"
    elif provenance.git_commit is None:
        yield "not done", "the commit of the code is missing"


# ---- the training log


def _from_scratch(submission: Submission, scores: RunScores) -> Found:
    entry = submission.entry.measured
    model = entry.model
    first_weights = flatten(entry.provenance.config).get("train.init_from")
    if model.from_scratch and first_weights is not None:
        yield "rejected", f"from_scratch, but train.init_from is {show(str(first_weights))}"
    if not model.from_scratch or model.distilled_from is not None:
        teacher = f" (teacher: {show(model.distilled_from)})" if model.distilled_from else ""
        yield "flagged", f"not trained from scratch on text alone{teacher}"
        return
    first = submission.train_log[0] if submission.train_log else None
    if first is None or first["mlm_loss"] is None or model.vocab_size is None:
        yield "not done", "the initial loss of a masked-language model is missing"
    elif first["step"] > PERCENT * entry.pretrain.num_steps:
        yield "not done", f"the log begins at step {first['step']:,}, after the initial loss"
    elif abs(first["mlm_loss"] - math.log(model.vocab_size)) > 0.7:
        yield (
            "rejected",
            f"the first MLM loss is {first['mlm_loss']:.2f}; from scratch it is near ln V = "
            f"{math.log(model.vocab_size):.2f}",
        )


# ---- the fine-tuning


def _rows(submission: Submission, scores: RunScores) -> Found:
    """Files of predictions have one row for each gold label."""
    gold = scores.gold
    for run in submission.runs:
        for split, path in run.predictions.items():
            official = TASKS[run.task].split(split).num_rows
            expected = len(gold.labels[run.task][split]) if gold.has(run.task) else official
            num = len(submission.predictions[path])
            if num != expected:
                yield "rejected", f"{path} has {num:,} rows, expected {expected:,}"


def _metrics(submission: Submission, scores: RunScores) -> Found:
    """Runs learned something, and were scored against the official labels."""
    gold = scores.gold
    for name in tasks_of(submission):
        task, runs = TASKS[name], [run for run in submission.runs if run.task == name]
        if not runs:
            yield "flagged", f"{name} is missing, so AVG cannot be computed"
            continue
        if not gold.has(name):
            yield "not done", f"{name} was not scored: its gold labels are not available"
            continue
        if name not in gold.pinned:
            what = "generated samples" if gold.is_sample else "not known to be official"
            yield "not done", f"the gold labels of {name} are {what}"
        found = [scores[run] for run in runs]
        failed = sum(run.failed for run in found)
        if failed == len(found):
            yield "flagged", f"{name}: no run learned anything; check the mapping of labels"
        elif failed:
            yield "flagged", f"{name}: {failed} of {len(found)} runs failed"
        best = max(run.metrics[task.ranking_metric] for run in found)
        if best > 99:
            yield "flagged", f"{name}: {best:.2f} exceeds human performance"
        mean = fmean(run.metrics[task.ranking_metric] for run in found)
        if submission.entry.tier == "reference" and mean > MAX_RANDOM.get(name, 100.0):
            yield "flagged", f"{name}: {mean:.1f} is more than random weights reach"


def _seeds(submission: Submission, scores: RunScores) -> Found:
    """Two seeds with equal answers in almost all rows are one run, copied."""
    groups: dict[tuple[str, str], dict[str, Labels]] = {}
    for run in submission.runs:
        for split, path in run.predictions.items():
            groups.setdefault((run.task, split), {})[path] = submission.predictions[path]
    for (task, _), answers in groups.items():
        originals: dict[str, str] = {}
        for first, path, but in copied_runs(task, answers):
            originals.setdefault(path, f"{first}{but}")
        for path, original in originals.items():
            yield "flagged", f"{path} equals {original}"


def _protocol(submission: Submission, scores: RunScores) -> Found:
    finetune = submission.entry.finetune
    assert finetune is not None
    most = max(sum(run.task == task for run in submission.runs) for task in TASKS)
    if finetune.num_trials < most:
        yield "rejected", f"num_trials {finetune.num_trials}, but one task has {most} runs"
    elif finetune.num_trials > MAX_TRIALS:
        yield "flagged", f"num_trials {finetune.num_trials:,}: more than anybody runs of one task"
    unknown = {run.learning_rate for run in submission.runs} - set(finetune.learning_rates)
    if unknown:
        yield "rejected", f"a run has learning rate {min(unknown):g}, which is not in the grid"
    if submission.entry.tier == "reference":
        for reason in unranked_reasons(submission):
            yield "rejected", f"a reference needs the runs of a track's protocol: {reason}"
    elif protocol_of(finetune) is not None:
        for reason in unranked_reasons(submission):
            yield "flagged", f"not {finetune.protocol}, so not ranked: {reason}"


CHECKS: Mapping[str, Check] = {
    "tier": _tier,
    "text": lambda submission, _: public_checks.text_findings(submission.entry),
    "date": claims.date_in_range,
    "links": lambda submission, _: public_checks.link_findings(submission.entry),
    "reported": _reported,
    "model": _model,
    "configuration": configuration,
    "sizes": _sizes,
    "data": _data,
    "tokens": _tokens,
    "compute": costs.compute,
    "energy": costs.energy,
    "log": log_check.log,
    "from scratch": _from_scratch,
    "provenance": _provenance,
    "digests": claims.digests,
    "price": costs.price,
    "positions": claims.positions,
    "track": claims.track,
    "rows": _rows,
    "seeds": _seeds,
    "protocol": _protocol,
    "choice": claims.choice,
    "metrics": _metrics,
    "splits": claims.splits,
}
"""Checks by name, in the order of a report; reading the folder has its own checks first."""

SCORED_CHECKS = ("choice", "metrics", "splits")
RUN_CHECKS = ("rows", "seeds", "protocol", "choice", "metrics", "splits")
UNRANKED_CHECKS: Mapping[Tier, Sequence[str]] = {
    "reported": ("tier", "text", "date", "links", "reported"),
    "reference": ("tier", "text", "date", "links", "sizes", *RUN_CHECKS),
}
"""Checks of a tier without a pretraining."""
MEASURED_CHECKS = tuple(name for name in CHECKS if name != "reported")
