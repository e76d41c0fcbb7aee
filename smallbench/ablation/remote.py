"""An ablation in a storage: pods without a common disk put their outcomes in one place.

URL/plan.json                     what the tables are made of, beside the outcomes
URL/VARIANT/seed-N/               a run as `pretrain --storage` keeps it, and
URL/VARIANT/seed-N/outcome.json   once its pretraining has ended
URL/VARIANT/seed-N/glue-…/        its fine-tuning runs, each when it ends
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from smallbench.ablation.outcomes import OUTCOME, RunOutcome, ended, finetunings, stored_outcome
from smallbench.ablation.plan import PLAN, Design, PlannedRun, Scoring, read_design
from smallbench.checkpoints.manifest import METRICS, step_of
from smallbench.checkpoints.record import RECORD_NAME, parse_record, read_record
from smallbench.errors import ConfigError, DataError, ExitCode
from smallbench.files import write_bytes, write_json
from smallbench.glue.results import RESULT_FILE
from smallbench.glue.results_storage import fetch_results, keep_results
from smallbench.storage import open_storage
from smallbench.storage.base import NotFoundError, Storage, get_json, join, put_json
from smallbench.storage.config import StorageConfig


def keep_plan(design: Design, out: Path, url: str | None, config: StorageConfig) -> None:
    """Write the plan to `out` and to the storage at `url`.

    Raises `ConfigError` if the storage has an ablation of another budget.
    """
    content: dict[str, Any] = design.to_json()
    if url is not None:
        storage = open_storage(url, config)
        with suppress(NotFoundError):
            former = read_design(get_json(storage, PLAN), f"{storage.url}/{PLAN}").flops
            if former != design.flops:
                raise ConfigError(
                    f"{storage.url} holds an ablation of {former:g} FLOPs a run, not "
                    f"{design.flops:g}; choose another --storage"
                )
        put_json(storage, PLAN, content)
    write_json(out / PLAN, content)


def fetch(
    run: PlannedRun, storage: Storage, config: StorageConfig, scoring: Scoring | None
) -> None:
    """Download what `storage` has of a run whose pretraining has ended.

    Raises `ConfigError` if the run directory holds another run.
    """
    if storage.num_bytes(OUTCOME) is None:
        return
    path = run.run_dir / RECORD_NAME
    content = storage.get(RECORD_NAME)
    there = parse_record(content, f"{storage.url}/{RECORD_NAME}")
    if path.exists() and read_record(path)["run_id"] != there["run_id"]:
        raise ConfigError(
            f"{storage.url} and {run.run_dir} hold two different runs; choose another --out"
        )
    if ended(run) is None:
        write_bytes(path, content)
        with suppress(NotFoundError):  # it diverged before the first record
            write_bytes(run.run_dir / METRICS, storage.get(METRICS))
        write_bytes(run.run_dir / OUTCOME, storage.get(OUTCOME))  # last: it vouches for the others
    if scoring is not None:
        fetch_results(finetunings_of(storage, config, scoring), run.run_dir / scoring.folder)


def storage_of(run: PlannedRun, url: str, config: StorageConfig) -> Storage:
    """Return the storage of one run of the ablation at `url`."""
    return open_storage(join(url, run.folder), config)


def finetunings_of(storage: Storage, config: StorageConfig, scoring: Scoring) -> Storage:
    """Return the storage of a run's fine-tunings."""
    return open_storage(join(storage.url, scoring.folder), config)


def keep(run: PlannedRun, storage: Storage, config: StorageConfig, scoring: Scoring | None) -> None:
    """Upload what `storage` lacks of a run whose pretraining has ended."""
    if storage.num_bytes(OUTCOME) is None:
        for name in (RECORD_NAME, METRICS, OUTCOME):
            if (run.run_dir / name).is_file():  # without metrics if it diverged before the first
                storage.upload(run.run_dir / name, name)
    if scoring is None:
        return
    results, folder = finetunings_of(storage, config, scoring), run.run_dir / scoring.folder
    there = {stored.key for stored in results.list("runs/")}
    for path in sorted(folder.glob(f"runs/*/*/{RESULT_FILE}")):
        if path.relative_to(folder).as_posix() not in there:
            keep_results(results, folder, path.parent)


def read_ablation(source: str, out: Path, config: StorageConfig) -> tuple[Design, list[RunOutcome]]:
    """Return the design of a stored ablation and the outcomes of its runs, whoever made them.

    `out` gets the records of the runs. A run that has not ended is `missing`, with the reason.
    """
    storage = open_storage(source, config)
    try:
        design = read_design(get_json(storage, PLAN), f"{source}/{PLAN}")
    except NotFoundError:
        raise DataError(
            f"{source} is not an ablation ({PLAN} is missing); expected the --out or --storage of "
            "'smallbench ablate'"
        ) from None
    is_here = "://" not in source and Path(source).resolve() == out.resolve()
    if not is_here:
        write_json(out / PLAN, design.to_json())
    outcomes = []
    for run in design.runs(out):
        there = storage_of(run, source, config)
        if not is_here:
            fetch(run, there, config, design.scoring)
        outcome = stored_outcome(run, design.scoring, {})
        outcomes.append(outcome or _missing(run, there, design.scoring))
    return design, outcomes


def unplanned(source: str, design: Design, config: StorageConfig) -> list[str]:
    """Return the folders of stored runs that the design does not have."""
    keys = [stored.key for stored in open_storage(source, config).list()]
    folders = {key.rpartition("/")[0] for key in keys if key.endswith(f"/{OUTCOME}")}
    return sorted(folders - {run.folder for run in design.runs(Path())})


def _missing(run: PlannedRun, storage: Storage, scoring: Scoring | None) -> RunOutcome:
    steps = [step_of(stored.key) for stored in storage.list("commits/step-")]
    if (run.run_dir / OUTCOME).is_file() and scoring is not None:
        results = finetunings(run, scoring)
        count = len(results) - results.count(None)
        reason = f"it has {count} of {len(results)} fine-tunings"
    elif steps:
        reason = f"its pretraining has not ended; the newest checkpoint is of step {max(steps):,}"
    else:
        reason = "it has no checkpoint yet"
    return RunOutcome(run.variant, run.seed, "missing", reason, exit_code=ExitCode.UNAVAILABLE)
