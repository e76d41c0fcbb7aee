"""Stored runs in a bucket: pods without a common disk put their results in one place.

A run is a folder there as here, and its `result.json` arrives last. Since runs have names of their
own, shards that write to one URL need no merging; a shard that is started again elsewhere finds
what it had finished.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from smallbench.files import write_bytes
from smallbench.glue.results import RESULT_FILE
from smallbench.storage import open_storage
from smallbench.storage.base import Storage, is_remote
from smallbench.storage.config import StorageConfig


@contextmanager
def results_folder(url: str | Path, config: StorageConfig) -> Iterator[Path]:
    """The folder of stored runs at `url`: a local one as it is, a remote one as a copy."""
    if not is_remote(str(url)):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="smallbench-results-") as temporary:
        fetch_results(open_storage(str(url), config), Path(temporary))
        yield Path(temporary)


def fetch_results(storage: Storage, folder: Path) -> None:
    """Download the finished runs of a storage that `folder` does not have."""
    keys = [stored.key for stored in storage.list("runs/")]
    whole = {key.rpartition("/")[0] for key in keys if key.endswith(f"/{RESULT_FILE}")}
    for key in sorted(keys, key=_is_result):
        run, path = key.rpartition("/")[0], folder / key
        if run in whole and not (folder / run / RESULT_FILE).is_file():
            write_bytes(path, storage.get(key))


def keeper(url: str, folder: Path, config: StorageConfig) -> Callable[[Path], None]:
    """What to call with a run's directory in `folder`, so that it is at `url`, too."""
    if not is_remote(url):
        return lambda directory: None
    storage = open_storage(url, config)
    storage.check()  # before hours of work, not behind them
    return partial(keep_results, storage, folder)


def keep_results(storage: Storage, folder: Path, directory: Path) -> None:
    """Upload a finished run in `folder`."""
    for path in sorted(directory.iterdir(), key=lambda path: _is_result(path.name)):
        storage.upload(path, path.relative_to(folder).as_posix())


def _is_result(key: str) -> bool:
    """Return whether the object arrives last."""
    return key.rpartition("/")[2] == RESULT_FILE
