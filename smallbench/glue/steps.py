"""Scores along the way: the kept checkpoints of one run beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from smallbench.glue.protocols import Summary
from smallbench.glue.tasks import TASKS

NOTHING = "–"


def step_folder(out: str, step: int) -> str:
    """Where the runs of one checkpoint are stored below `out`, a folder or a URL."""
    return f"{out.rstrip('/')}/step-{step:010d}"


def steps_table(summaries: Mapping[int, Summary]) -> str:
    """A Markdown table: a checkpoint a row, a task a column, and the mean over those tasks."""
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
        # Means of other sets of tasks are not comparable.
        is_whole = len(summary.tasks) == len(names)
        mean = f"{summary.mean_of_present:.2f}" if is_whole else NOTHING
        lines.append(f"| {step:,} | {' | '.join(scores)} | {mean} |")
    return "\n".join(lines)
