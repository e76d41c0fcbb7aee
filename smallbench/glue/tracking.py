"""A model's GLUE scores in W&B: a table with intervals, and the means in the run's summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallbench.config import digest
from smallbench.estimate import estimate
from smallbench.files import read_json
from smallbench.glue.protocols import Summary
from smallbench.glue.tasks import task_named
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import open_views

SETTINGS = ("model", "model_sha256", "num_parameters", "protocol", "max_train_examples",
            "is_sample", "random_init", "departures")  # fmt: skip
COLUMNS = ("task", "metric", "score", "mean", "lower", "upper", "seeds", "failed")


def table_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return a row of `COLUMNS` for each task: the score, and the mean with its interval."""
    rows = []
    for name, summed in summary.tasks.items():
        task, mean = task_named(name), estimate([run.score for run in summed.runs])
        shown = (summed.score, mean.mean, mean.low, mean.high, summed.num_runs, summed.num_failed)
        rows.append((task.title, task.ranking_metric, *shown))
    return rows


def recipe_of(model: str) -> str | None:
    """Return the recipe that a model's directory names; None if this project did not export it."""
    marker = Path(model) / "smallbench.json"
    return str(read_json(marker)["config"]["recipe"]) if marker.is_file() else None


def show_summary(
    config: TrackerConfig, summary: Summary, *, recipe: str | None, folder: Path
) -> None:
    """Show `summary` in W&B as `config` asks; a model and protocol always use the same W&B run."""
    settings = {key: getattr(summary, key) for key in SETTINGS}
    settings["departures"] = list(summary.departures)
    means = {f"glue/{name}": task.score for name, task in summary.tasks.items()}
    for view in open_views(
        config,
        run_id=digest(settings)[:8],
        name=f"glue of {summary.model}",
        group=recipe or summary.model,
        job_type="glue",
        folder=folder,
        settings=settings,
        at_end=lambda: means | {"glue/average": summary.average},
    ):
        with view:
            view.table("glue", COLUMNS, table_rows(summary))
