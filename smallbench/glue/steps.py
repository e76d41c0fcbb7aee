"""Scores of the kept checkpoints of one run, in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from smallbench.errors import DataError
from smallbench.glue.protocols import DEFAULT, NOTHING, Summary, summarize
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


def scores_by_step(
    folders: Sequence[Path], protocol: str = DEFAULT
) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Return the means of stored results by run id and step, and the titles of their tasks.

    A folder holds one checkpoint's results, or a folder `step-…` for each. Of two measurements of
    a step, the one with more runs counts. Raises `DataError` if results are not of a run's
    checkpoint, if two are of different tasks, or if two of one step differ in equally many runs.
    """
    measured: dict[str, dict[int, list[tuple[int, float, Path]]]] = {}
    tasks: dict[tuple[str, ...], Path] = {}
    for folder in (part for place in folders for part in result_folders(place).values()):
        runs = read_runs(folder)
        summary = summarize(runs, protocol)
        found = CHECKPOINT.search(summary.model)
        if found is None or summary.random_init:
            kind = "random weights" if summary.random_init else summary.model
            raise DataError(f"{folder} has results of {kind}, not of a checkpoint of a run")
        tasks.setdefault(tuple(summary.tasks), folder)
        of_step = measured.setdefault(found[1], {}).setdefault(int(found[2].replace(",", "")), [])
        of_step.append((len(runs), summary.mean_of_present, folder))
    if len(tasks) > 1:
        one, other = list(tasks.items())[:2]
        raise DataError(
            f"{one[1]} has scores of {', '.join(one[0])}, but {other[1]} of {', '.join(other[0])}; "
            "means of different tasks cannot be compared"
        )
    scores = {
        run_id: {step: _best(of_step) for step, of_step in of_run.items()}
        for run_id, of_run in measured.items()
    }
    return scores, [task_named(name).title for names in tasks for name in names]


def _best(measured: Sequence[tuple[int, float, Path]]) -> float:
    """Return the mean of the measurement with the most runs; `measured` are runs, mean, folder."""
    most = max(count for count, _, _ in measured)
    places = {mean: folder for count, mean, folder in measured if count == most}
    if len(places) > 1:
        raise DataError(
            f"{' and '.join(map(str, places.values()))} have other scores of the same step in "
            f"equally many runs ({most}); leave one out"
        )
    return next(iter(places))
