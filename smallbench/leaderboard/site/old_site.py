"""Use files of the site that a build replaces again, if their inputs are equal.

The cache notes the key of a file's inputs, its size, time and inode. A file that was changed by
hand does not have them and is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from smallbench import files
from smallbench.leaderboard.cache import read_json

Note = list[str | int]
"""Key of the inputs, size, time of change and inode."""
WHOLE = ""
"""The note of the whole site: key of its inputs, and a hash of its files' status."""


class OldSite:
    """The files of the site at `out`, as the cache knows them; without a cache, none."""

    def __init__(self, out: Path, cache: Path | None) -> None:
        self._out = out
        name = hashlib.sha256(os.fsencode(out)).hexdigest()
        self._notes = cache and cache / f"site-{name[:16]}.json"
        self._known: Mapping[str, Note] = (self._notes and read_json(self._notes)) or {}

    def has(self, path: str, key: str) -> bool:
        """Return whether the old site has this file, made of the same inputs."""
        try:
            return self._known.get(path) == _note(key, self._out / path)
        except OSError:
            return False

    def is_whole(self, key: str) -> bool:
        """Return whether the whole old site is made of these inputs, and no file was touched."""
        return bool(key) and self._known.get(WHOLE) == [key, _digest(self._out)]

    def put(self, path: str, key: str, target: Path, make: Callable[[], bytes]) -> Note:
        """Make `target` a link to the old file, or write what `make` returns."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not self.has(path, key):
                raise FileNotFoundError
            os.link(self._out / path, target)
        except OSError:  # or the file system has no links
            target.write_bytes(make())
        return _note(key, target)

    def remember(self, notes: Mapping[str, Note], key: str) -> None:
        """Replace the notes by those of the new site, of which `key` is the hash of all inputs."""
        if self._notes:
            whole = {WHOLE: [key, _digest(self._out)]}
            files.write_text(self._notes, json.dumps({**notes, **whole}))


def _digest(folder: Path) -> str:
    """Return a hash of the names, sizes, times and inodes of all files below `folder`."""
    notes = sorted((str(path), _note("", path)) for path in folder.rglob("*") if not path.is_dir())
    return hashlib.sha256(repr(notes).encode(errors="surrogateescape")).hexdigest()


def _note(key: str, path: Path) -> Note:
    status = path.lstat()
    return [key, status.st_size, status.st_mtime_ns, status.st_ino]
