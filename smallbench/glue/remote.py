"""Stored runs in a bucket: pods without a common disk put their results in one place.

A run is a folder there as here, and its `result.json` arrives last. Since runs have names of their
own, shards that write to one URL need no merging; a shard that is started again elsewhere finds
what it had finished.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smallbench.glue.results import RESULT_FILE
from smallbench.storage import open_storage
from smallbench.storage.base import is_remote
from smallbench.storage.config import StorageConfig


@contextmanager
def results_folder(url: str | Path, config: StorageConfig) -> Iterator[Path]:
    """The folder of stored runs at `url`: a local one as it is, a remote one as a copy."""
    if not is_remote(str(url)):
        yield Path(url)
        return
    storage = open_storage(str(url), config)
    with tempfile.TemporaryDirectory(prefix="smallbench-results-") as temporary:
        keys = [stored.key for stored in storage.list("runs/")]
        whole = {key.rpartition("/")[0] for key in keys if key.endswith(f"/{RESULT_FILE}")}
        for key in keys:
            if key.rpartition("/")[0] in whole:
                path = Path(temporary) / key
                path.parent.mkdir(parents=True, exist_ok=True)
                storage.download(key, path)
        yield Path(temporary)


def keeper(url: str, folder: Path, config: StorageConfig) -> Callable[[Path], None]:
    """What to call with a run's directory in `folder`, so that it is at `url`, too."""
    if not is_remote(url):
        return lambda directory: None
    storage = open_storage(url, config)
    storage.check()  # before hours of work, not behind them

    def keep(directory: Path) -> None:
        for path in sorted(directory.iterdir(), key=lambda path: path.name == RESULT_FILE):
            storage.upload(path, path.relative_to(folder).as_posix())

    return keep
