"""`run.json`: the configuration and corpus of a run directory, and each attempt at it.

Both are fixed by the first checkpoint; a later attempt must agree with them. Code, device and
command may change, and are noted with each attempt. Free of torch: reports and the leaderboard read
records too.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from smallbench import __version__
from smallbench.checkpoints.manifest import check_version
from smallbench.config import differing_keys
from smallbench.errors import ConfigError, DataError
from smallbench.files import parse_json, read_json, write_json, write_text
from smallbench.plugins import write_copies
from smallbench.tracking.jsonl import RESTORE

RECORD_NAME, RECORD_VERSION = "run.json", 1
HOLDER_NAME, LOCK_NAME = "holder.json", "lock"
PLUGINS = "plugins"
"""Folder of a run with the copies of its plug-ins; their text is in the record too."""

Record = dict[str, Any]

_PARTS: dict[str, type] = {
    "run_id": str,
    "config": dict,
    "data": str,
    "corpus": dict,
    "plugins": list,
    "attempts": list,
    "summary": dict,
}
_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", list: "a list"}


def read_record(path: Path) -> Record:
    """Return the record in a file; raise as `parse_record` does."""
    try:
        record = read_json(path)
    except DataError as error:
        raise DataError(f"{error}; {RESTORE}") from None
    return _checked(record, str(path))


def parse_record(content: bytes, name: str) -> Record:
    """Return the record in `content`; raise `DataError` about `name` if it is something else.

    Raises `OtherVersionError` if another release wrote it.
    """
    return _checked(parse_json(content, name), name)


def _checked(record: Record, name: str) -> Record:
    check_version(record.get("schema_version"), RECORD_VERSION, name)  # before its parts
    parts: Record = {"summary": {}, **record}  # a run that has not ended has no summary
    for key, kind in _PARTS.items():
        if not isinstance(parts.get(key), kind):
            raise DataError(
                f"{name} is not the record of a run: expected {_JSON_NAMES[kind]} in {key!r}; "
                "restore the file from a copy or the storage, or choose another --run_dir"
            )
    for key in ("attempts", "plugins"):
        if not all(isinstance(item, dict) for item in record[key]):
            raise DataError(f"{name} is not the record of a run: expected objects in {key!r}")
    if not all(type(attempt.get("number")) is int for attempt in record["attempts"]):
        raise DataError(f"{name} is not the record of a run: an attempt has no integer 'number'")
    return record


def open_record(
    run_dir: Path,
    own: Record,
    *,
    resumable: Collection[str],
    has_checkpoints: bool,
    allow_changed_code: bool = False,
) -> Record:
    """Return the record in `run_dir`, or a new one from `own`; nothing is written.

    `own` is from `pretraining.run_record`, `resumable` are the keys that may differ. An attempt
    that failed before the first checkpoint does not count. Raises `ConfigError` naming each
    difference if `run_dir` holds another run.
    """
    path = run_dir / RECORD_NAME
    if not path.exists():
        if has_checkpoints:
            raise DataError(f"{run_dir} has checkpoints but no {RECORD_NAME}; restore that file")
        fixed = {"schema_version": RECORD_VERSION, "run_id": uuid4().hex[:8]}
        return {**fixed, **own, "attempts": []}
    record = read_record(path)
    if "shards" not in record["corpus"]:
        raise DataError(f"{path} is not the record of a run: its 'corpus' has no 'shards'")
    differing = differing_keys(record["config"], own["config"])
    differing = {key: pair for key, pair in differing.items() if key not in resumable}
    if record["corpus"]["shards"] != own["corpus"]["shards"]:
        differing["data"] = (record["data"], own["data"])
    if has_checkpoints and not allow_changed_code:
        _refuse_changed_code(run_dir, record["plugins"], own["plugins"])
    if not differing:
        return record | {"plugins": own["plugins"]}
    listed = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in differing.items())
    if has_checkpoints:
        raise ConfigError(
            f"{run_dir} has a run with another configuration ({listed}); choose another --run_dir, "
            "or start it with the same values"
        )
    print(
        f"{run_dir} has no checkpoint yet, so the run begins with this configuration ({listed})",
        file=sys.stderr,
    )
    return {**record, **own}


def _refuse_changed_code(
    run_dir: Path, kept: Iterable[Mapping[str, Any]], plugins: Iterable[Mapping[str, Any]]
) -> None:
    hashes = {plugin["name"]: plugin["sha256"] for plugin in kept}
    for plugin in plugins:
        name, old, new = plugin["name"], hashes.get(plugin["name"]), plugin["sha256"]
        if old is not None and old != new:
            raise ConfigError(
                f"{name} has changed since {run_dir} began (SHA-256 {old[:12]}, now {new[:12]}); "
                f"use the copy in {run_dir / PLUGINS / old[:12]}, choose another --run_dir, or "
                "continue with --allow_changed_code"
            )


def next_attempt(record: Record) -> int:
    """Return the number of the next attempt, from 1."""
    return max((attempt["number"] for attempt in record["attempts"]), default=0) + 1


def add_attempt(
    run_dir: Path, record: Record, number: int, *, first_step: int, machine: Mapping[str, Any]
) -> None:
    """Note attempt `number`, which continues after `first_step`, and write the record."""
    record["attempts"].append(
        {
            "number": number,
            "first_step": first_step,
            "started_unix_seconds": round(time.time(), 3),
            "command": sys.argv,
            "smallbench": __version__,
            "git_commit": git_commit(),
            "python": platform.python_version(),
            **machine,
            "plugins": {plugin["name"]: plugin["sha256"] for plugin in record["plugins"]},
        }
    )
    write_copies(record["plugins"], run_dir / PLUGINS, write_text)
    write_json(run_dir / RECORD_NAME, record)


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Put the totals of the run into its record."""
    record = read_json(run_dir / RECORD_NAME)
    write_json(run_dir / RECORD_NAME, record | {"summary": dict(summary)})


def holder_of(run_dir: Path) -> str:
    """Return the name of this run directory, drawn once; the caller holds its lock.

    A copy of the directory gets a new name: the inode and change time of the lock file, which a
    copy cannot keep, are stored with the name. In a pod the name is the pod's uid, so that a lease
    names its pod.
    """
    status = (run_dir / LOCK_NAME).stat()
    identity = {"lock_inode": status.st_ino, "lock_changed_ns": status.st_ctime_ns}
    path = run_dir / HOLDER_NAME
    if path.exists():
        try:
            known = read_json(path)
            if known.items() >= identity.items() and "name" in known:
                return str(known["name"])
            reason = f"{run_dir} was copied or restored: it waits for the lease of the original"
        except DataError as error:
            reason = f"{error}: {run_dir} gets a new name and waits for the lease of the former one"
        print(f"{reason}, if that is still running", file=sys.stderr)
    name = os.environ.get("POD_UID") or uuid4().hex
    write_json(path, {"name": name, **identity})
    return name


def git_commit() -> str | None:
    """Return the commit of the running code, with `+dirty` if files were changed.

    An image sets it in SOURCE_COMMIT; None if neither git nor the variable has it.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        # If the package is installed inside another checkout, that checkout's commit is not ours.
        git("ls-files", "--error-unmatch", here.name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "..")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SOURCE_COMMIT") or None
    return f"{commit}+dirty" if changed else commit
