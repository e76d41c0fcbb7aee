"""`smallbench prepare --out=s3://…`: prepare in the cache, publish, keep the copy to train from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import options_of, prepare, refuse_other_options
from smallbench.data.shards import Manifest
from smallbench.data.source import Source
from smallbench.data.transfer import (
    cache_directory,
    move_to_cache,
    publish_corpus,
    published_manifest,
)
from smallbench.files import exclusive_lock
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from smallbench.storage.base import Storage
from smallbench.storage.config import StorageConfig


def prepare_remote(
    config: PrepareConfig,
    url: str,
    *,
    storage: StorageConfig,
    cache: Path | None = None,
    workers: int | None = None,
    stop: Stop = NEVER,
    source: Source | None = None,
) -> Manifest:
    """Run `prepare` with a URL as output: the same call continues, or finds it done.

    Raises the errors of `prepare` and `publish_corpus`; problems of `url` are raised before any
    work.
    """
    place = open_storage(url, storage)
    if (published := already_published(place, config)) is not None:
        return published
    place.check()
    name = f"{place.url.rpartition('/')[2]}-{hashlib.sha256(place.url.encode()).hexdigest()[:16]}"
    work = cache_directory(cache) / "prepare" / name
    with exclusive_lock(
        work.with_name(f"{name}.lock"),
        f"another process prepares {place.url} in {work}; wait for it, or choose another --out",
    ):
        manifest = prepare(config, out=work, workers=workers, stop=stop, source=source)
        publish_corpus(work, url, storage, stop=stop)
        move_to_cache(work, cache=cache)
    return manifest


def already_published(place: Storage, config: PrepareConfig) -> Manifest | None:
    """Return the manifest of the corpus in `place`, if it is complete.

    Raises `ConfigError` if it was prepared with other options.
    """
    content = published_manifest(place)
    if content is None:
        return None
    manifest = Manifest.parse(content, place=place.url)
    refuse_other_options(place.url, dict(manifest.options), options_of(config))
    print(f"{place.url} is already prepared with these options")
    return manifest
