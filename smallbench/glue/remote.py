"""Stored runs in a bucket, for pods without a shared disk.

The layout is that of a local folder, and `result.json` is uploaded last. Folder names identify
runs, so shards that write to one URL need no merge. A shard that restarts on another machine finds
its finished runs.
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
    """Yield the folder of stored runs at `url`: a local folder, or a copy of a remote one."""
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
    """Return a function that uploads a run's directory in `folder` to `url`."""
    if not is_remote(url):
        return lambda directory: None
    storage = open_storage(url, config)
    storage.check()  # fail before hours of work, not after them

    def keep(directory: Path) -> None:
        for path in sorted(directory.iterdir(), key=lambda path: path.name == RESULT_FILE):
            storage.upload(path, path.relative_to(folder).as_posix())

    return keep
