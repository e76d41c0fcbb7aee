"""The manifest of a checkpoint: its step, its files with their hashes, and a hash of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallbench.config import digest
from smallbench.errors import DataError
from smallbench.files import parse_json, read_retried, sha256_file

SCHEMA_VERSION = 3
SEAL = "manifest_sha256"

METRICS = "metrics.jsonl"
"""Records of the run up to the step; with them, an empty machine continues the records too."""


class DamagedError(DataError):
    """The files of a checkpoint, its manifest or `run.json` are not as they were written."""


class OtherVersionError(DataError):
    """Another release of this project wrote this checkpoint or run."""


def step_name(step: int) -> str:
    """Return `step-0000012000`: zero-padded, so that names sort as numbers do."""
    return f"step-{step:010d}"


def step_of(name: str) -> int:
    """Return the step of a commit's file name or key."""
    return int(Path(name).name.split(".")[0].removeprefix("step-"))


def attempt_name(attempt: int) -> str:
    """Return `attempt-0003`, as in the paths of its data."""
    return f"attempt-{attempt:04d}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with a hash of itself, in place of an earlier one."""
    content = {**manifest, "schema_version": SCHEMA_VERSION}
    content.pop(SEAL, None)
    return {**content, SEAL: digest(content)}


def parse_manifest(content: bytes, name: str) -> dict[str, Any]:
    """Return the manifest in `content`; raise as `check_manifest` does."""
    try:
        manifest = parse_json(content, name)
    except DataError as error:
        raise DamagedError(str(error)) from None
    check_manifest(manifest, name)
    return manifest


def check_manifest(manifest: Mapping[str, Any], name: str = "the manifest") -> None:
    """Check a manifest before any of its files is touched.

    Raises `OtherVersionError` if another release wrote it, `DamagedError` if it does not match its
    hash or names files outside its own directory.
    """
    check_version(manifest.get("schema_version"), SCHEMA_VERSION, name)
    if sealed(manifest)[SEAL] != manifest.get(SEAL):
        raise DamagedError(f"{name} does not match its own SHA-256")
    if missing := {"step", "directory", "files", "attempt"} - manifest.keys():
        raise DamagedError(f"{name} has no {sorted(missing)[0]!r}")
    directory = str(manifest["directory"])
    if not re.fullmatch(r"checkpoints/step-\d{10,}/attempt-\d{4,}", directory):
        raise DamagedError(
            f"{name} names {directory!r}, which is not the directory of a checkpoint"
        )
    for file in manifest["files"]:
        if not re.fullmatch(r"\w[\w.-]*", file):
            raise DamagedError(f"{name} names {file!r}, which is not a file of a checkpoint")


def check_version(version: Any, expected: int, name: str) -> None:
    """Raise `OtherVersionError` if `version` is an integer other than `expected`.

    Raises `DamagedError` if it is not an integer.
    """
    if type(version) is int and version != expected:
        raise OtherVersionError(
            f"{name} has schema_version {version}; this release reads {expected}. Nothing was "
            "changed: continue with the release that wrote it (run.json names it), or choose "
            "another --run_dir"
        )
    if version != expected:
        raise DamagedError(f"{name} has schema_version {version!r}; expected {expected}")


def check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise `DamagedError` if a file does not have the size and SHA-256 of its manifest.

    Raises `UnavailableError` if it cannot be read.
    """
    try:
        num_bytes = read_retried(path, path.stat).st_size
        if num_bytes == expected["bytes"]:
            if sha256_file(path) != expected["sha256"]:
                raise DamagedError(f"{path} does not match its SHA-256")
            return
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DamagedError(f"{path} is missing") from None
    raise DamagedError(f"{path} has {num_bytes} bytes; its manifest says {expected['bytes']}")
