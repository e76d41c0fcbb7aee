"""Durable local files: written beside, flushed, then renamed into place.

Every file that another process or a restarted run may read is written through this module, so
that a reader sees the old content or the new, never a part.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from smallbench.errors import ConflictError, DataError

TEMPORARY_MARK = ".tmp-"
"""Infix of files and directories that are not finished; anything with it may be deleted."""


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """A fresh name beside `path` that marks its content as unfinished."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid4().hex[:12]}")


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole and flushed, if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline to `path` atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `DataError` naming the file where it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_directory(source: Path, target: Path) -> None:
    """Copy a small directory, which appears at `target` whole and flushed."""
    temporary = temporary_sibling(target)
    try:
        shutil.copytree(source, temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
        sync_directory(temporary)
        temporary.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file that another library wrote."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether this process holds the advisory lock on `path` while the block runs.

    False where another one has it; the kernel frees it when its holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold `try_lock`'s lock; raises `ConflictError(message)` when another process has it."""
    with try_lock(path) as is_mine:
        if not is_mine:
            raise ConflictError(message)
        yield


@contextmanager
def waiting_lock(path: Path, message: str) -> Iterator[None]:
    """Like `exclusive_lock`; where another process holds it, print `message` once and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(message, file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
