"""Exports in a storage. The marker travels last, so its presence means that the rest is there."""

from __future__ import annotations

import json
from pathlib import Path

from smallbench.errors import ConfigError, DataError
from smallbench.storage import open_storage
from smallbench.storage.base import Storage
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import open_views

MARKER = "smallbench.json"
"""Present in each export: the run, the step and the configuration that it came from."""

UNFINISHED = "smallbench.unfinished"
"""Object that exists during an upload: leftovers of a killed upload may be replaced."""


def send_export(directory: Path, storage: Storage) -> None:
    """Upload an export; it may replace only an earlier one.

    Raises `ConfigError` if anything else is there.
    """
    names = sorted(path.name for path in directory.iterdir())
    refuse_foreign(storage)
    foreign = {stored.key for stored in storage.list()} - {*names, MARKER, UNFINISHED}
    if foreign:
        raise ConfigError(
            f"{storage.url} holds {sorted(foreign)[0]!r}, which no export wrote; move it away, or "
            "choose another --out"
        )
    storage.put(UNFINISHED, b"an export is being sent here\n")
    storage.delete([MARKER])
    for name in names:
        if name != MARKER:
            storage.upload(directory / name, name)
    storage.upload(directory / MARKER, MARKER)
    storage.delete([UNFINISHED])


def refuse_foreign(storage: Storage) -> None:
    """Raise `ConfigError` if `storage` has objects but no export."""
    keys = {stored.key for stored in storage.list()}
    if keys and not keys & {MARKER, UNFINISHED}:
        raise ConfigError(
            f"{storage.url} is not empty and is not an earlier export; choose another --out"
        )


def fetch_export(storage: Storage, directory: Path) -> None:
    """Download an export into a directory; raises `DataError` if it is missing or incomplete."""
    found = {stored.key: stored.num_bytes for stored in storage.list() if "/" not in stored.key}
    if MARKER not in found or UNFINISHED in found:
        state = "an export that is not complete" if UNFINISHED in found else "no export"
        raise DataError(
            f"{storage.url} holds {state} (no {MARKER}); expected the --out of 'smallbench export'"
        )
    for name, num_bytes in found.items():
        storage.download(name, directory / name)
        if (directory / name).stat().st_size != num_bytes:
            raise DataError(f"{storage.url}/{name} changed while it was fetched; try again")


def show_export(config: TrackerConfig, out: str, storage: StorageConfig, *, folder: Path) -> None:
    """Show the export at `out` in W&B, if `config` asks; its own directory is made in `folder`."""
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
