"""The project's dashboard in W&B, as code: the report's charts over all runs, grouped by recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smallbench.errors import UnavailableError
from smallbench.tracking.panels import SECTIONS, Panel
from smallbench.tracking.wandb import entity_of_key

NAME = "Small-Bench"

AXIS = "tokens"
"""Default axis of the charts: runs with different batch sizes are comparable in tokens."""


def build_workspace(entity: str, project: str, *, tasks: Sequence[str]) -> Any:
    """Return the dashboard, with a bar for each of the GLUE `tasks`; nothing is sent."""
    import wandb_workspaces.reports.v2 as reports
    from wandb_workspaces import workspaces

    def chart(panel: Panel) -> Any:
        return reports.LinePlot(
            title=panel.title,
            x=AXIS,
            y=list(panel.keys),
            title_y=panel.unit or None,
            log_y=panel.is_log or None,
        )

    bars = [
        reports.BarPlot(title="GLUE average", metrics=["glue/average"]),
        reports.BarPlot(title="GLUE tasks", metrics=[f"glue/{task}" for task in tasks]),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            *(
                workspaces.Section(name=name, panels=[chart(p) for p in panels], is_open=True)
                for name, panels in SECTIONS.items()
            ),
            workspaces.Section(name="GLUE", panels=bars, is_open=True),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group"), workspaces.Metric("JobType")]
        ),
    )


def save_dashboard(project: str, *, tasks: Sequence[str]) -> str:
    """Save the dashboard as a new view of `project`; return its address.

    Raises `UnavailableError` if W&B cannot be reached or no key is set.
    """
    import wandb_workspaces  # noqa: F401 - if it is missing, the error below would hide that

    try:
        workspace = build_workspace(entity_of_key(), project, tasks=tasks)
        workspace.save()
        return str(workspace.url)
    except Exception as problem:  # of any class
        raise UnavailableError(
            f"the dashboard was not saved ({' '.join(str(problem).split())}); it needs a key "
            "('wandb login') and W&B's server"
        ) from problem
