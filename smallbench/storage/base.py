"""The protocol of a storage, and how to open one by its URL.

Keys are relative to the storage's URL, with `/` between their parts. A reader sees an object as it
was before a write or after it, never a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smallbench.errors import DataError
from smallbench.storage.config import StorageConfig


class NotFoundError(DataError):
    """There is no object of this key. A refused or failed request is never this."""


class AlreadyExistsError(DataError):
    """`put(..., only_new=True)` found an object of this key."""


@dataclass(frozen=True)
class Stored:
    """One object of a listing."""

    key: str
    num_bytes: int
    modified_unix_seconds: float


class Storage(Protocol):
    """Objects by key.

    Every method raises `UnavailableError` where the storage does not answer (after short retries of
    its own) and `CredentialsError` where it refuses; neither is ever taken for "not there".
    """

    url: str
    """Without a `/` at its end."""

    def list(self, prefix: str = "") -> list[Stored]:
        """All objects whose key begins with `prefix`, sorted by key."""
        ...

    def get(self, key: str) -> bytes:
        """A small object's content; raises `NotFoundError`."""
        ...

    def put(self, key: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a small object; with `only_new`, raise `AlreadyExistsError` where there is one."""
        ...

    def num_bytes(self, key: str) -> int | None:
        """Size of an object; None where there is none."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Write a file of any size as an object."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a file, in place; raises `NotFoundError`."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        ...

    def abort_uploads(self, prefix: str = "", *, older_than_seconds: float = 0) -> int:
        """Give up unfinished uploads that began so long ago; how many there were."""
        ...

    def check(self) -> None:
        """Fail now, in one sentence, where this storage cannot be read and written."""
        ...


def is_remote(url: str) -> bool:
    """Whether `url` names a storage rather than a local path."""
    return "://" in url


def open_storage(url: str, config: StorageConfig | None = None) -> Storage:
    """The storage at `s3://BUCKET/PREFIX`, `file:///PATH` or a local path; nothing is asked yet.

    Raises `ConfigError` for any other URL.
    """
    if url.startswith("s3://"):
        from smallbench.storage.s3 import S3Storage

        return S3Storage(url, config or StorageConfig())
    from smallbench.storage.local import LocalStorage

    return LocalStorage(url)


def join(url: str, *parts: str) -> str:
    """`url` with further parts of a path."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])
