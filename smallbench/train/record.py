"""`run.json`: what a run directory holds, and each attempt at it.

Configuration and corpus are fixed by the first checkpoint; a later attempt must agree with them.
The version of the code, the device and the command may change, and are noted with each attempt.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from smallbench import __version__
from smallbench.config import differing_keys, digest, from_dict, to_dict
from smallbench.data.shards import Manifest
from smallbench.errors import ConfigError, DataError
from smallbench.files import read_json, write_json, write_text
from smallbench.plugins import use_copies, write_copies
from smallbench.train.config import PretrainConfig, plugins_of, resumable_keys
from smallbench.train.manifest import check_version
from smallbench.train.run_record import RECORD_NAME, Record, check_record

RECORD_VERSION = 1
HOLDER_NAME, LOCK_NAME = "holder.json", "lock"
PLUGINS = "plugins"
"""Folder of a run with the copies of its plug-ins; their text is in the record too."""


def open_record(
    run_dir: Path,
    config: PretrainConfig,
    *,
    data: Path,
    manifest: Manifest,
    has_checkpoints: bool,
    allow_changed_code: bool = False,
) -> Record:
    """Return the record in `run_dir`, or a new one; nothing is written.

    Configuration and corpus are fixed by the first checkpoint: an attempt that failed before it
    does not count. Raises `ConfigError` naming each difference if `run_dir` holds another run.
    """
    corpus = {
        "tokenizer": manifest.tokenizer.fingerprint,
        "pad_id": manifest.tokenizer.pad_id,
        "source": manifest.source,
        "rows": manifest.rows["train"],
        # Equal shards are equal data, wherever they lie.
        "shards": digest({shard.name: shard.sha256 for shard in manifest.shards}),
    }
    own: Record = {
        "config": to_dict(config),
        "config_digest": digest(config),
        "data": str(data),
        "corpus": corpus,
        "plugins": [plugin.to_dict() for plugin in plugins_of(config)],
    }
    path = run_dir / RECORD_NAME
    if not path.exists():
        if has_checkpoints:
            raise DataError(f"{run_dir} has checkpoints but no {RECORD_NAME}; restore that file")
        fixed = {"schema_version": RECORD_VERSION, "run_id": uuid4().hex[:8]}
        return {**fixed, **own, "attempts": []}
    record = read_json(path)
    check_version(record.get("schema_version"), RECORD_VERSION, str(path))  # before its parts
    check_record(record, str(path))
    if "shards" not in record.get("corpus", {}):
        raise DataError(f"{path} is not the record of a run: its 'corpus' has no 'shards'")
    differing = {
        key: pair
        for key, pair in differing_keys(record["config"], to_dict(config)).items()
        if key not in resumable_keys(config)
    }
    if record["corpus"]["shards"] != corpus["shards"]:
        differing["data"] = (record["data"], str(data))
    if has_checkpoints and not allow_changed_code:
        _refuse_changed_code(run_dir, record.get("plugins", ()), own["plugins"])
    if not differing:
        return record | {"plugins": own["plugins"]}
    listed = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in differing.items())
    if has_checkpoints:
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({listed}); choose another --run_dir, "
            "or start it with the same values"
        )
    print(
        f"{run_dir} holds no checkpoint yet, so the run begins with this configuration ({listed})",
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


def read_config(run_dir: Path, record: Record) -> PretrainConfig:
    """The configuration of a run; classes of plug-ins come from the copies that it keeps."""
    use_copies(record.get("plugins", ()), run_dir / PLUGINS)
    return from_dict(PretrainConfig, record["config"])


def next_attempt(record: Record) -> int:
    """The number of the next attempt, from 1."""
    return max((attempt["number"] for attempt in record["attempts"]), default=0) + 1


def add_attempt(
    run_dir: Path,
    record: Record,
    number: int,
    *,
    first_step: int,
    device: torch.device,
    precision: str,
    engine: Mapping[str, Any],
    num_processes: int,
) -> None:
    """Note attempt `number`, which continues after `first_step`, and write the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    record["attempts"].append(
        {
            "number": number,
            "first_step": first_step,
            "started_unix_seconds": round(time.time(), 3),
            "command": sys.argv,
            "smallbench": __version__,
            "git_commit": git_commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": name,
            "num_devices": num_processes,
            "precision": precision,
            "engine": dict(engine),
            "num_threads": torch.get_num_threads(),
            "plugins": {plugin["name"]: plugin["sha256"] for plugin in record["plugins"]},
        }
    )
    write_copies(record["plugins"], run_dir / PLUGINS, write_text)
    write_json(run_dir / RECORD_NAME, record)


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Put what the run has come to into its record."""
    record = read_json(run_dir / RECORD_NAME)
    write_json(run_dir / RECORD_NAME, record | {"summary": dict(summary)})


def holder_of(run_dir: Path) -> str:
    """Return a name of this run directory, drawn once; the caller holds its lock.

    A copy of the directory gets a name of its own: the lock file's inode and change time, which no
    copy can keep, are noted with the name. In a pod the name is the pod's uid, since a lease says
    which pod to look at.
    """
    status = (run_dir / LOCK_NAME).stat()
    identity = {"lock_inode": status.st_ino, "lock_changed_ns": status.st_ctime_ns}
    path = run_dir / HOLDER_NAME
    if path.exists():
        with suppress(DataError):  # a file that is cut is no better than none
            known = read_json(path)
            if known.items() >= identity.items() and "name" in known:
                return str(known["name"])
        print(
            f"{run_dir} is a copy or was restored: it waits for the lease of the original, if that "
            "still runs",
            file=sys.stderr,
        )
    name = os.environ.get("POD_UID") or uuid4().hex
    write_json(path, {"name": name, **identity})
    return name


def git_commit() -> str | None:
    """The commit of the code that runs, with `+dirty` where it was changed.

    An image says it in SOURCE_COMMIT; None where neither git nor that tells.
    """
    here = Path(__file__)
    try:
        # Installed inside somebody else's checkout, that checkout's commit says nothing of us.
        _git(here, "ls-files", "--error-unmatch", here.name)
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "..")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SOURCE_COMMIT") or None
    return f"{commit}+dirty" if changed else commit


def _git(file: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
