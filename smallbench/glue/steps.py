"""Scores of the kept checkpoints of one run, in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from smallbench.errors import DataError
from smallbench.glue.protocols import NOTHING, Summary, summarize
from smallbench.glue.results import read_runs
from smallbench.glue.tasks import TASKS, task_named

CHECKPOINT = re.compile(r"\(run (\w+), step ([\d,]+)\)$")
"""The end of a result's model name, see `pretrained.display_name`."""


def step_folder(out: str, step: int) -> str:
    """Return where the runs of one checkpoint are stored below `out`, a folder or a URL."""
    return f"{out.rstrip('/')}/step-{step:010d}"


def result_folders(place: Path) -> dict[int | None, Path]:
    """Return the folders of stored runs: of each step that `place` has, and `place` as None."""
    found: dict[int | None, Path] = {
        int(path.name.removeprefix("step-")): path
        for path in sorted(place.glob(f"step-{'[0-9]' * 10}"))
        if (path / "runs").is_dir()
    }
    return found if found and not (place / "runs").is_dir() else {None: place, **found}


def steps_table(summaries: Mapping[int, Summary]) -> str:
    """Return a Markdown table: a row a checkpoint, a column a task, and their mean."""
    names = [name for name in TASKS if any(name in s.tasks for s in summaries.values())]
    lines = [
        f"| Step | {' | '.join(TASKS[name].title for name in names)} | Mean |",
        f"|--:|{'--:|' * (len(names) + 1)}",
    ]
    for step, summary in sorted(summaries.items()):
        scores = [
            f"{summary.tasks[name].score:.2f}" if name in summary.tasks else NOTHING
            for name in names
        ]
        # Means over different sets of tasks are not comparable.
        is_whole = len(summary.tasks) == len(names)
        mean = f"{summary.mean_of_present:.2f}" if is_whole else NOTHING
        lines.append(f"| {step:,} | {' | '.join(scores)} | {mean} |")
    return "\n".join(lines)


def scores_by_step(folders: Sequence[Path]) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Return the means of stored results by run id and step, and the titles of their tasks.

    A folder holds one checkpoint's results, or a folder `step-…` for each. Raises `DataError` if
    results are not of a run's checkpoint, or if two are of different tasks.
    """
    scores: dict[str, dict[int, float]] = {}
    tasks: dict[tuple[str, ...], Path] = {}
    for place in folders:
        for folder in sorted(place.glob("step-*")) or [place]:
            summary = summarize(read_runs(folder))
            found = CHECKPOINT.search(summary.model)
            if found is None:
                raise DataError(
                    f"{folder} has results of {summary.model}, which is not a checkpoint of a run"
                )
            tasks.setdefault(tuple(summary.tasks), folder)
            step = int(found[2].replace(",", ""))
            scores.setdefault(found[1], {})[step] = summary.mean_of_present
    if len(tasks) > 1:
        one, other = list(tasks.items())[:2]
        raise DataError(
            f"{one[1]} has scores of {', '.join(one[0])}, but {other[1]} of {', '.join(other[0])}; "
            "means of different tasks cannot be compared"
        )
    return scores, [task_named(name).title for names in tasks for name in names]
