"""A model's GLUE scores in W&B: a table with intervals, and the means in the run's summary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scipy import stats

from smallbench.config import digest
from smallbench.files import read_json
from smallbench.glue.protocols import Summary, TaskSummary
from smallbench.glue.tasks import task_named
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import open_views

CONFIDENCE = 0.95

SETTINGS = ("model", "model_sha256", "num_parameters", "protocol", "max_train_examples",
            "is_sample", "random_init", "departures")  # fmt: skip
COLUMNS = ("task", "metric", "score", "mean", "lower", "upper", "seeds", "failed")


def seed_interval(task: TaskSummary) -> tuple[float, float] | None:
    """Return the confidence interval of the mean over seeds; None for one run.

    Student's t interval, since the deviation is estimated from few seeds.
    """
    if task.sd is None:
        return None
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, task.num_runs - 1))
    half = t * task.sd / math.sqrt(task.num_runs)
    return task.mean - half, task.mean + half


def table_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return a row of `COLUMNS` for each task: the score, and the mean with its interval."""
    return [
        (
            task_named(name).title,
            task_named(name).ranking_metric,
            task.score,
            task.mean,
            *(seed_interval(task) or (None, None)),
            task.num_runs,
            task.num_failed,
        )
        for name, task in summary.tasks.items()
    ]


def show_summary(config: TrackerConfig, summary: Summary, *, model: str, folder: Path) -> None:
    """Show `summary` in W&B as `config` asks; a model and protocol always use the same W&B run.

    `model` is the directory or id that was fine-tuned: our exports name their recipe.
    """
    marker = Path(model) / "smallbench.json"
    recipe = read_json(marker)["config"]["recipe"] if marker.is_file() else summary.model
    settings = {key: getattr(summary, key) for key in SETTINGS}
    settings["departures"] = list(summary.departures)
    means = {f"glue/{name}": task.score for name, task in summary.tasks.items()}
    for view in open_views(
        config,
        run_id=digest(settings)[:8],
        name=f"glue of {summary.model}",
        group=recipe,
        job_type="glue",
        folder=folder,
        settings=settings,
        at_end=lambda: means | {"glue/average": summary.average},
    ):
        with view:
            view.table("glue", COLUMNS, table_rows(summary))
