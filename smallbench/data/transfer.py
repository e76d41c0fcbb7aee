"""Prepared corpora in a storage: published once, and pulled to wherever one trains from them.

The manifest travels last in both directions, so its presence means that the rest is there. It also
says what each shard must hash to; of the tokenizer it knows the fingerprint of `tokenizer.json`,
and the files beside that one follow from it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from smallbench.data.meter import byte_meter
from smallbench.data.shards import MANIFEST_NAME, Manifest, Shard, difference_of, verify_shards
from smallbench.data.tokenizer import HELD_OUT_NAME, Tokenizer, file_fingerprint
from smallbench.errors import ConfigError, DataError
from smallbench.files import (
    TEMPORARY_MARK,
    atomic_directory,
    atomic_path,
    sync_directory,
    waiting_lock,
    write_bytes,
)
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage, is_remote
from smallbench.storage.config import StorageConfig

MARK = "publishing.sha256"
"""Object that says which manifest the corpus that is being published will have; deleted at the end.

It tells what a killed publishing left from what is not ours: shards of other corpora have the same
names and sizes."""

TOKENIZER, TOKENIZER_FILE = "tokenizer", "tokenizer.json"
_REMEDY = "delete {url} and run 'smallbench prepare' with this --out"


def cache_directory(cache: Path | None = None) -> Path:
    """`cache`, else `$SMALLBENCH_CACHE`, else `~/.cache/smallbench`."""
    return cache or Path(os.environ.get("SMALLBENCH_CACHE") or "~/.cache/smallbench").expanduser()


def local_corpus(
    url: str | Path, config: StorageConfig, *, cache: Path | None = None, stop: Stop = NEVER
) -> Path:
    """The directory of a prepared corpus: a local path as it is, a remote one pulled to the cache.

    In the cache its name is its manifest's hash: equal corpora share it and a changed one gets its
    own. What a killed pull completed is not fetched again, and a second process waits for the
    first. Raises `DataError` unless a whole corpus arrives, `InterruptedRunError`
    after a whole file when `stop` asks for it.
    """
    if not is_remote(str(url)):
        return Path(url)
    storage = open_storage(str(url), config)
    content = published_manifest(storage)
    if content is None:
        raise DataError(
            f"{storage.url} is not a prepared corpus (it has no {MANIFEST_NAME}); "
            "run 'smallbench prepare' with this --out"
        )
    manifest = Manifest.parse(content, place=storage.url)
    directory = _cached(content, cache)
    if not _is_complete(directory, manifest):
        with waiting_lock(
            _lock_of(directory), f"another process pulls {storage.url} to {directory}; waiting"
        ):
            if not _is_complete(directory, manifest):
                _pull(storage, manifest, directory, stop)
                write_bytes(directory / MANIFEST_NAME, content)
    return directory


def published_manifest(storage: Storage) -> bytes | None:
    """The manifest of the corpus in `storage`; None if it is missing or not complete."""
    return _get(storage, MANIFEST_NAME)


def publish_corpus(directory: Path, url: str, config: StorageConfig, *, stop: Stop = NEVER) -> None:
    """Upload a prepared directory; the same call continues what was interrupted, or repairs.

    Raises `DataError` if `directory` is damaged, `ConfigError` if another corpus or a foreign
    file is at `url`, `InterruptedRunError` after a whole file when `stop` asks for it.
    """
    manifest = Manifest.read(directory)
    verify_shards(directory)
    if not _is_tokenizer(directory / TOKENIZER / TOKENIZER_FILE, manifest):
        raise DataError(
            f"{directory / TOKENIZER} is not the tokenizer of its manifest; delete {directory} and "
            "prepare it again"
        )
    names = [shard.name for shard in manifest.shards]
    names += [f"{TOKENIZER}/{path.name}" for path in sorted((directory / TOKENIZER).iterdir())]
    content = (directory / MANIFEST_NAME).read_bytes()
    storage = open_storage(url, config)
    published = published_manifest(storage)
    another = ConfigError(
        f"another corpus is at {storage.url}; choose another --out, or delete it there"
    )
    if published not in (None, content):
        raise another
    if published is None:
        _claim(storage, _digest(content), names)
    sizes = {name: (directory / name).stat().st_size for name in names}
    missing = [name for name in names if storage.num_bytes(name) != sizes[name]]
    with byte_meter(f"publishing {storage.url}", sum(sizes[name] for name in missing)) as advance:
        for name in missing:
            stop.raise_if_asked(f"publishing {storage.url}")
            storage.upload(directory / name, name)
            advance(sizes[name])
    if published is None:
        try:
            storage.put(MANIFEST_NAME, content, only_new=True)
        except AlreadyExistsError:
            if published_manifest(storage) != content:  # else two published this corpus at once
                raise another from None
    storage.delete([MARK])


def move_to_cache(directory: Path, *, cache: Path | None = None) -> Path:
    """Give a prepared directory the place in the cache where `local_corpus` will look for it."""
    target = _cached((directory / MANIFEST_NAME).read_bytes(), cache)
    with waiting_lock(_lock_of(target), f"another process writes {target}; waiting"):
        if _is_complete(target, Manifest.read(directory)):
            shutil.rmtree(directory)  # somebody trains from that one already
        else:
            shutil.rmtree(target, ignore_errors=True)
            directory.rename(target)
            sync_directory(target.parent)
    return target


def _claim(storage: Storage, digest: bytes, names: Iterable[str]) -> None:
    """Mark the place as incomplete; refuse to overwrite files of other programs."""
    mark = _get(storage, MARK)
    if mark is None:
        for name in names:
            if storage.num_bytes(name) is not None:
                raise ConfigError(
                    f"{storage.url} holds {name}, which belongs to no published corpus; choose "
                    "another --out, or delete it there"
                )
        try:
            storage.put(MARK, digest, only_new=True)
        except AlreadyExistsError:
            mark = _get(storage, MARK) or b""
    if mark not in (None, digest):
        raise ConfigError(
            f"another corpus is on its way to {storage.url} ({MARK}), or was and never arrived; "
            "choose another --out, or delete it there"
        )


def _pull(storage: Storage, manifest: Manifest, directory: Path, stop: Stop) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"*{TEMPORARY_MARK}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    missing = [shard for shard in manifest.shards if not _is_shard(directory / shard.name, shard)]
    num_bytes = sum(shard.bytes for shard in missing)
    with byte_meter(f"pulling {storage.url} to {directory}", num_bytes) as advance:
        if not _is_tokenizer(directory / TOKENIZER / TOKENIZER_FILE, manifest):
            _pull_tokenizer(storage, manifest, directory / TOKENIZER)
        for shard in missing:
            stop.raise_if_asked(f"pulling {storage.url}")
            _download(storage, shard.name, directory / shard.name, partial(_is_shard, shard=shard))
            advance(shard.bytes)


def _pull_tokenizer(storage: Storage, manifest: Manifest, folder: Path) -> None:
    with atomic_directory(folder) as temporary:
        path = temporary / TOKENIZER_FILE
        is_right = partial(_is_tokenizer, manifest=manifest)
        _download(storage, f"{TOKENIZER}/{TOKENIZER_FILE}", path, is_right)
        content = path.read_bytes()
        # The other files have no hash, so they are written anew from the one that was checked.
        Tokenizer.load(temporary).save(temporary)
        path.write_bytes(content)  # another release of tokenizers may have worded it differently
        (temporary / HELD_OUT_NAME).write_bytes(storage.get(f"{TOKENIZER}/{HELD_OUT_NAME}"))


def _download(storage: Storage, key: str, path: Path, is_right: Callable[[Path], bool]) -> None:
    """Download and verify an object, then rename it; retry once if it does not match."""
    remedy = _REMEDY.format(url=storage.url)
    with atomic_path(path) as temporary:
        for _ in range(2):
            try:
                storage.download(key, temporary)
            except NotFoundError:
                raise DataError(
                    f"{storage.url}/{key} is missing, its manifest names it; {remedy}"
                ) from None
            if is_right(temporary):
                return
        raise DataError(
            f"{storage.url}/{key} does not match its manifest, also after a second download; "
            f"{remedy}"
        )


def _is_shard(path: Path, shard: Shard, *, hashed: bool = True) -> bool:
    return difference_of(path, shard, hashed=hashed) is None


def _is_tokenizer(path: Path, manifest: Manifest) -> bool:
    return path.is_file() and file_fingerprint(path) == manifest.tokenizer.fingerprint


def _is_complete(directory: Path, manifest: Manifest) -> bool:
    """Compare sizes only: each file was hashed at its download."""
    return (
        (directory / MANIFEST_NAME).is_file()
        and (directory / TOKENIZER / TOKENIZER_FILE).is_file()
        and all(_is_shard(directory / s.name, s, hashed=False) for s in manifest.shards)
    )


def _cached(manifest: bytes, cache: Path | None) -> Path:
    return cache_directory(cache) / "corpora" / _digest(manifest).decode()[:32]


def _digest(manifest: bytes) -> bytes:
    return hashlib.sha256(manifest).hexdigest().encode()


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def _get(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key)
    except NotFoundError:
        return None
