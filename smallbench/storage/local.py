"""A directory as a storage: a network disk, or a second disk of this machine."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from smallbench.errors import ConfigError, UnavailableError
from smallbench.files import (
    TEMPORARY_MARK,
    atomic_path,
    is_transient,
    temporary_sibling,
    write_error,
    write_errors_explained,
)
from smallbench.retry import retried
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Stored, is_remote

T = TypeVar("T")

UNFINISHED = re.compile(rf".*{re.escape(TEMPORARY_MARK)}[0-9a-f]{{12}}")
"""Names that `temporary_sibling` makes."""

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""What link(2) says on file systems such as FAT and most that are mounted through FUSE."""


class LocalStorage:
    """Objects are files; each appears by a rename, or, where it must be new, by a hard link."""

    def __init__(self, url: str | Path) -> None:
        if isinstance(url, str):
            is_remote(url, name="storage")
            url = url.removeprefix("file://")
        self.root = Path(url).absolute()
        self.url = str(self.root)

    def list(self, prefix: str = "") -> list[Stored]:
        """Return all objects whose key begins with `prefix`, sorted by key."""
        found = self._read(lambda: list(self._objects(prefix)))
        return sorted(found, key=lambda stored: stored.key)

    def _walk(self, prefix: str, *, topdown: bool = True) -> Iterator[tuple[str, Any, Any]]:
        top = self.root / prefix.rpartition("/")[0]
        return os.walk(top, topdown=topdown, onerror=_unless_missing)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _objects(self, prefix: str) -> Iterator[Stored]:
        for folder, _, names in self._walk(prefix):
            for name in names:
                path = Path(folder) / name
                key = self._key(path)
                if not key.startswith(prefix) or TEMPORARY_MARK in key:
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # deleted since
                    continue
                yield Stored(key, status.st_size, status.st_mtime)

    def get(self, key: str) -> bytes:
        """Return a small object's content; raises `NotFoundError`."""
        return self._read(self.path(key).read_bytes, key)

    def put(self, key: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a small object; with `only_new`, raise `AlreadyExistsError` if it exists."""
        with self._written(key, only_new=only_new) as temporary:
            temporary.write_bytes(content)

    def num_bytes(self, key: str) -> int | None:
        """Return the size of an object, or None if it does not exist."""
        try:
            return self._read(self.path(key).stat, key).st_size
        except NotFoundError:
            return None

    def upload(self, path: Path, key: str) -> None:
        """Write a file of any size as an object."""
        with (
            path.open("rb") as source,
            self._written(key, only_new=False) as temporary,
            temporary.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)

    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a file, in place; raises `NotFoundError`."""

        def copy() -> None:
            with (
                self.path(key).open("rb") as source,
                write_errors_explained(path.parent),
                path.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)

        if not path.parent.is_dir():  # the caller's fault; below, a missing file is the object
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
        self._read(copy, key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects and the directories that this empties."""
        with _explained(self.url):
            for key in keys:
                self.path(key).unlink(missing_ok=True)
                self._remove_empty_parents(self.path(key))

    def _remove_empty_parents(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self.root:
                break
            try:
                parent.rmdir()
            except OSError:  # not empty, or gone
                break

    def abort_uploads(self, prefix: str = "") -> int:
        """Delete what killed writers left, directories that they had just emptied too.

        Returns how many files or unfinished directories there were.
        """
        count = 0
        with _explained(self.url):
            for folder, folders, names in self._walk(prefix, topdown=False):
                for path in (Path(folder) / name for name in (*folders, *names)):
                    if UNFINISHED.fullmatch(path.name) and self._key(path).startswith(prefix):
                        with suppress(FileNotFoundError):  # its writer has just finished
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
                            count += 1
                key = self._key(Path(folder))
                if key != "." and f"{key}/".startswith(prefix) and not UNFINISHED.fullmatch(folder):
                    # Not empty, or needed after all: its writer makes it again.
                    with suppress(OSError):
                        self.path(key).rmdir()
        return count

    def check(self) -> None:
        """Make the directory, write to it, and read back what was written."""
        content = b"smallbench may write here\n"
        with _explained(self.url):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:
                raise UnavailableError(
                    f"Could not create {self.url} ({error.strerror}); choose a writable directory"
                ) from None
            probe = temporary_sibling(self.root / "probe")
            try:
                probe.write_bytes(content)
                if probe.read_bytes() != content:
                    raise UnavailableError(f"{self.url} does not return what was written to it")
            finally:
                with suppress(OSError):
                    probe.unlink()

    def path(self, key: str) -> Path:
        """Return the file of an object."""
        return self.root / key

    def _read(self, read: Callable[[], T], key: str = "") -> T:
        """Return `read()`, retried after transient errors."""
        with _explained(self.url, key):
            return retried(read, is_transient)

    @contextmanager
    def _written(self, key: str, *, only_new: bool) -> Iterator[Path]:
        publish = self._link if only_new else Path.replace
        with _explained(self.url, key), atomic_path(self.path(key), publish=publish) as temporary:
            yield temporary

    def _link(self, temporary: Path, path: Path) -> None:
        """Unlike a rename, a hard link never replaces."""
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise AlreadyExistsError(f"{path} exists already") from None
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            print(
                f"{self.url} has no hard links ({error.strerror}): two writers that commit in the "
                "same moment would not notice each other",
                file=sys.stderr,
            )
            if path.exists():
                raise AlreadyExistsError(f"{path} exists already") from None
            temporary.replace(path)


@contextmanager
def _explained(url: str, key: str = "") -> Iterator[None]:
    where = f"{url}/{key}" if key else url
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{where} does not exist") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        found, expected = (
            ("a directory", "a file")
            if isinstance(error, IsADirectoryError)
            else ("a file or below one", "a directory")
        )
        raise ConfigError(
            f"{where}: {error.filename} is {found}, but {expected} is needed; choose another path"
        ) from None
    except PermissionError as error:
        raise UnavailableError(
            f"{where} may not be read or written by this user ({error.strerror}); change its "
            "permissions"
        ) from None
    except OSError as error:
        if explained := write_error(error, Path(url)):
            raise explained from None
        raise UnavailableError(
            f"{where} could not be read or written ({error.strerror or error}); check the disk "
            "and its mount"
        ) from None


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
