"""Stored runs in a bucket, for pods without a shared disk: shards of one URL need no merge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from smallbench import files
from smallbench.glue.results import RESULT_FILE
from smallbench.storage import open_storage
from smallbench.storage.base import Storage, is_remote
from smallbench.storage.config import StorageConfig


@contextmanager
def results_folder(url: str | Path, config: StorageConfig) -> Iterator[Path]:
    """Yield the folder of stored runs at `url`: a local folder, or a copy of a remote one."""
    if not is_remote(str(url)):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="smallbench-results-") as temporary:
        fetch_results(open_storage(str(url), config), Path(temporary))
        yield Path(temporary)


def fetch_results(storage: Storage, folder: Path) -> None:
    """Download the finished runs of a storage, those of steps too, that `folder` does not have."""
    keys = [stored.key for prefix in ("runs/", "step-") for stored in storage.list(prefix)]
    whole = {key.rpartition("/")[0] for key in keys if key.endswith(f"/{RESULT_FILE}")}
    for key in sorted(keys, key=_is_result):
        run, path = key.rpartition("/")[0], folder / key
        if run in whole and not (folder / run / RESULT_FILE).is_file():
            files.write_bytes(path, storage.get(key))


def keeper(url: str, folder: Path, config: StorageConfig) -> Callable[[Path], None]:
    """Return a function that uploads a run's directory in `folder` to `url`."""
    if not is_remote(url):
        return lambda directory: None
    storage = open_storage(url, config)
    storage.check()  # fail before hours of work, not after them
    return partial(keep_results, storage, folder)


def keep_results(storage: Storage, folder: Path, directory: Path) -> None:
    """Upload a finished run in `folder`."""
    for path in sorted(directory.iterdir(), key=lambda path: _is_result(path.name)):
        storage.upload(path, path.relative_to(folder).as_posix())


def _is_result(key: str) -> bool:
    return key.rpartition("/")[2] == RESULT_FILE
