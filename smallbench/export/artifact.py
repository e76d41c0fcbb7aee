"""An export as an artifact in W&B: where its files are, and which run they come from."""

from __future__ import annotations

import json
from pathlib import Path

from smallbench.export.upload import MARKER
from smallbench.storage import open_storage
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import open_views


def show_export(
    config: TrackerConfig, out: str, storage: StorageConfig, *, folder: Path = Path()
) -> None:
    """Show the export at `out`, as `config` asks; W&B's own directory is made in `folder`."""
    place = open_storage(out, storage)
    origin = json.loads(place.get(MARKER))
    run_id = origin["run_id"]
    for view in open_views(
        config,
        run_id=f"{run_id}-export",
        name=out,
        group=origin["config"]["recipe"],
        job_type="export",
        folder=folder,
        settings=origin["config"],
    ):
        with view:
            view.refer(
                f"export-{run_id}",
                kind="model",
                url=place.url,
                files=[stored.key for stored in place.list()],
                metadata={key: value for key, value in origin.items() if key != "config"},
                aliases=[f"step-{origin['step']}"],
            )
