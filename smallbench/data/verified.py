"""Shards are verified at every start that did not verify them before.

A run directory remembers size, modification time and inode of each shard that was found to match
its hash. A shard that is another file now, or on another machine, is read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallbench.data.shards import MANIFEST_NAME, Manifest, verify_shard
from smallbench.errors import DataError
from smallbench.files import read_json, write_json

MEMORY_NAME = "verified.json"


def verify_once(directory: Path, memory: Path) -> int:
    """Verify the shards in `directory` that `memory` does not know; return how many were read.

    Raises `DataError` naming the first shard that does not match the manifest.
    """
    known: dict[str, Any] = {}
    if memory.exists():
        try:
            known = read_json(memory)
        except DataError:  # nothing hangs on it
            known = {}
    seen: dict[str, Any] = {}
    num_read = 0
    for shard in Manifest.read(directory).shards:
        path = directory / shard.name
        identity = {**_identity(path), "sha256": shard.sha256}
        if known.get(shard.name) != identity:
            verify_shard(directory, shard)
            num_read += 1
        seen[shard.name] = identity
    if seen != known:
        write_json(memory, seen)
    return num_read


def _identity(path: Path) -> dict[str, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} is missing, {MANIFEST_NAME} names it") from None
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "inode": status.st_ino}
