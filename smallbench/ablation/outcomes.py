"""The outcome of a run, from what its directory keeps.

OUT/VARIANT/seed-N/                 a run directory like any other
OUT/VARIANT/seed-N/outcome.json     whether the pretraining has ended, and how
OUT/VARIANT/seed-N/glue-…/          its fine-tuning runs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smallbench.ablation.plan import PlannedRun, Scoring
from smallbench.checkpoints.manifest import METRICS
from smallbench.checkpoints.record import RECORD_NAME
from smallbench.errors import DataError, ExitCode, SmallbenchError
from smallbench.files import read_json
from smallbench.glue.protocols import summarize
from smallbench.glue.results import RESULT_FILE, RunResult, read_runs
from smallbench.tracking.jsonl import read_metrics

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of one planned run. Nothing in it depends on the clock."""

    variant: str
    seed: int
    status: str
    """`done`, `diverged`, `failed` or `missing`."""
    reason: str = ""
    held_out_loss: float | None = None
    glue_mean: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    """Score of each task, × 100."""
    num_failed_finetunings: int = 0
    steps: int | None = None
    tokens: int | None = None
    train_flops: float | None = None
    exit_code: ExitCode = ExitCode.DONE
    """Of a failed run; not stored."""


class AblationFailedError(SmallbenchError):
    """Some runs failed or are missing; the others are done."""

    exit_code = ExitCode.UNAVAILABLE  # an instance has that of its first failure

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def raise_if_failed(outcomes: Sequence[RunOutcome]) -> None:
    """Raise `AblationFailedError` with the exit code of the first run that failed or is missing."""
    failures = [outcome for outcome in outcomes if outcome.status in {"failed", "missing"}]
    if failures:
        first, is_missing = failures[0], failures[0].status == "missing"
        raise AblationFailedError(
            f"{len(failures)} of {len(outcomes)} runs {'are missing' if is_missing else 'failed'}; "
            f"{first.variant} seed {first.seed}: {first.reason}. The same command "
            + ("finds them when they have ended" if is_missing else "tries them again"),
            first.exit_code,
        )


def ended(run: PlannedRun) -> dict[str, Any] | None:
    """Return how the pretraining ended; None if it has not."""
    path = run.run_dir / OUTCOME
    return read_json(path) if path.is_file() else None


def stored_outcome(
    run: PlannedRun, scoring: Scoring | None, data_sha256: Mapping[str, Mapping[str, str]]
) -> RunOutcome | None:
    """Return the outcome of a run if all of it is in its directory.

    `data_sha256` has the rows' hashes of each task that is at hand; a score on other rows does not
    count.
    """
    how = ended(run)
    if how is None:
        return None
    outcome = RunOutcome(run.variant, run.seed, how["status"], how["reason"])
    if outcome.status != "done":
        return outcome
    outcome = replace(outcome, **_pretraining(run))
    if scoring is None:
        return outcome
    results = finetunings(run, scoring)
    if None in results:
        return None
    found = [result for result in results if result is not None]
    if any(data_sha256.get(r.settings.task, r.data_sha256) != r.data_sha256 for r in found):
        return None
    return replace(outcome, **_glue(found))


def finetunings(run: PlannedRun, scoring: Scoring) -> list[RunResult | None]:
    """Return the stored fine-tunings of a run in the plan's order; None for what is not stored."""
    folder = run.run_dir / scoring.folder
    stored = read_runs(folder) if any(folder.glob(f"runs/*/*/{RESULT_FILE}")) else []
    by_key = {(r.settings.task, r.settings.learning_rate, r.settings.seed): r for r in stored}
    rate = scoring.learning_rate
    return [by_key.get((task, rate, seed)) for task in scoring.tasks for seed in scoring.seeds]


def _pretraining(run: PlannedRun) -> dict[str, Any]:
    """Return the last held-out loss, and the run's steps, tokens and FLOPs."""
    records = read_metrics(run.run_dir / METRICS)
    last = next((r for r in reversed(records) if r["event"] == "eval"), None)
    if last is None:
        raise DataError(f"{run.run_dir / METRICS} has no held-out loss; delete the run's folder")
    summary = read_json(run.run_dir / RECORD_NAME)["summary"]
    return {
        "held_out_loss": last["loss"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_flops": summary["train_flops"],
    }


def _glue(results: Sequence[RunResult]) -> dict[str, Any]:
    summary = summarize(results)
    return {
        "glue_mean": summary.mean_of_present,
        "tasks": {name: task.score for name, task in summary.tasks.items()},
        "num_failed_finetunings": sum(task.num_failed for task in summary.tasks.values()),
    }
