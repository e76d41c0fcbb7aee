"""Where checkpoints, corpora and exports travel to: one small protocol, a directory or S3."""

from __future__ import annotations

from smallbench.storage.base import Storage, is_remote
from smallbench.storage.config import StorageConfig


def open_storage(url: str, config: StorageConfig | None = None) -> Storage:
    """Return the storage at `s3://BUCKET/PREFIX`, `file:///PATH` or a local path.

    Sends no request. Raises `ConfigError` for everything else that looks like a URL.
    """
    if is_remote(url, name="storage") and url.startswith("s3://"):
        from smallbench.storage.s3 import S3Storage

        return S3Storage(url, config or StorageConfig())
    from smallbench.storage.local import LocalStorage

    return LocalStorage(url)
