"""The protocol of a storage, and what its URLs may be.

Keys are relative to the storage's URL, with `/` between their parts. A reader sees an object as it
was before a write or after it, never a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args
from urllib.parse import urlsplit

from smallbench.config import Location, annotations_of
from smallbench.errors import ConfigError, DataError
from smallbench.files import indented_json, parse_json

URL_LIKE = re.compile(
    r"(?!hub:(?!//))"  # a data set of the hub, or with hub:/PATH one on this machine
    r"\s*[\"']?([A-Za-z][A-Za-z0-9+.-]*:/|(s3|s3a|s3n|gs|file|http|https|hdfs|az|abfs|r2|b2):)|.*://",
    re.IGNORECASE | re.DOTALL,
)
LOCATION = re.compile(r"\s*[\"']?(s3|s3a|s3n|gs|file):", re.IGNORECASE)
"""A storage's URL, in the value of an option that may also be something else (a hub id)."""
BUCKET = re.compile(r"[a-zA-Z0-9._-]{1,255}|arn:[a-z0-9-]+:s3[a-z0-9-]*:[^/]+:accesspoint:[^/]+")
"""What botocore accepts; the ARN is that of an access point."""


class NotFoundError(DataError):
    """No object has this key. A refused or failed request never raises it."""


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

    Every method raises `UnavailableError` if the storage does not answer (after short retries of
    its own) and `CredentialsError` if it refuses; neither is ever taken for "not there".
    """

    url: str
    """Without a `/` at its end."""

    def list(self, prefix: str = "") -> list[Stored]:
        """Return all objects whose key begins with `prefix`, sorted by key."""
        ...

    def get(self, key: str) -> bytes:
        """Return a small object's content; raises `NotFoundError`."""
        ...

    def put(self, key: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a small object; with `only_new`, raise `AlreadyExistsError` if it exists."""
        ...

    def num_bytes(self, key: str) -> int | None:
        """Return the size of an object, or None if it does not exist."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Write a file of any size as an object."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a file, in place; raises `NotFoundError`."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        ...

    def abort_uploads(self, prefix: str = "") -> int:
        """Give up unfinished uploads; how many there were."""
        ...

    def check(self) -> None:
        """Raise now, in one sentence, if this storage cannot be read and written."""
        ...


def is_remote(location: str, *, name: str = "") -> bool:
    """Return whether `location` is the URL of a storage rather than a local path or another name.

    Everything that looks like a URL is one or is refused: an unset variable in it or a lost slash
    would else make a local folder of it. Raises `ConfigError`; `name` is the flag to quote.
    """
    said = f"{name or 'location'} {location!r}"
    if not location.strip():
        raise ConfigError(f"{said} is empty; is a variable in it unset?")
    if not URL_LIKE.match(location):
        return False
    expected = "expected s3://BUCKET/PREFIX, file:///PATH or a local path"
    scheme, separator, rest = location.partition("://")
    if scheme not in {"s3", "file"} or not separator:
        raise ConfigError(f"{said} is not a storage's URL; {expected}")
    if not location.isprintable() or location != location.strip():
        raise ConfigError(
            f"{said} starts or ends with a space, or has a control character; {expected}"
        )
    first, *others = rest.rstrip("/").split("/") if rest.strip("/") else [""]
    if scheme == "file":
        if first or not others:
            raise ConfigError(f"{said} is not an absolute path; {expected}")
    elif not BUCKET.fullmatch(first):
        what = f"the bucket {first!r} is not a valid name" if first else "the bucket is missing"
        raise ConfigError(f"{said}: {what} (is a variable in it unset?); {expected}")
    if {"", ".", ".."} & set(others):
        raise ConfigError(
            f"{said} has an empty part, '.' or '..' in its path (is a variable in it unset?); "
            f"{expected}"
        )
    return True


def check_path(path: Path, *, name: str) -> None:
    """Raise `ConfigError` if a flag that takes a local path was given a URL."""
    if URL_LIKE.match(str(path)):
        typed = str(path).replace(":/", "://", 1)  # a Path keeps one slash
        raise ConfigError(f"{name} {typed!r} looks like a URL; expected a local path")


def check_endpoint(
    url: str, *, name: str = "endpoint_url", bucket: str = "", in_host: bool = True
) -> None:
    """Raise `ConfigError` if `url` is not the address of a store, or also names the bucket.

    `in_host`: a host that begins with the bucket's name counts, too.
    """
    parts = urlsplit(url.strip())
    if "@" in parts.netloc:
        raise ConfigError(
            f"{name} holds credentials, which would be printed; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead"
        )
    try:
        is_address = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number
        is_address = False
    if not is_address or url != url.strip() or parts.query or parts.fragment:
        raise ConfigError(f"{name} {url!r} is not an address; expected https://HOST[:PORT]")
    host, last = parts.hostname or "", parts.path.rstrip("/").rpartition("/")[2]
    if bucket and (last == bucket or (in_host and host.startswith(f"{bucket.lower()}."))):
        raise ConfigError(
            f"{name} {url!r} already holds the bucket's name {bucket!r}, which would be added a "
            "second time; leave it out of the address (or set --addressing_style=path, if the "
            "host only happens to be named like the bucket)"
        )


def check_locations(options: Any) -> None:
    """Refuse malformed URLs in every flag that takes a URL or a path."""
    for key, annotation in annotations_of(type(options)).items():
        value = getattr(options, key)
        kinds = {annotation, *get_args(annotation)}
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path):
                check_path(each, name=f"--{key}")
            elif key == "endpoint_url" and each is not None:
                check_endpoint(each, name=f"--{key}")
            elif isinstance(each, str) and (
                Location in kinds or key == "storage" or LOCATION.match(each)
            ):
                if each.startswith("hub:") and key != "corpus":
                    raise ConfigError(
                        f"--{key} {each!r} names a data set of the hub, which only --corpus of "
                        "'smallbench prepare' takes; expected a URL or a local path"
                    )
                is_remote(each, name=f"--{key}")


def get_json(storage: Storage, key: str) -> dict[str, Any]:
    """Return the JSON object that is stored as `key`; raise `DataError` if it is something else."""
    return parse_json(storage.get(key), f"{storage.url}/{key}")


def put_json(
    storage: Storage, key: str, content: Mapping[str, Any], *, only_new: bool = False
) -> None:
    """Write indented JSON as `key`; raise as `Storage.put` does."""
    storage.put(key, indented_json(content).encode(), only_new=only_new)


def join(url: str, *parts: str) -> str:
    """`url` with further parts of a path; raises `ConfigError` as `is_remote` does."""
    is_remote(url)
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])
