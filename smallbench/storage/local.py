"""A directory as a storage: a network disk, or a second disk of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from smallbench.errors import ConfigError, CredentialsError, UnavailableError
from smallbench.files import TEMPORARY_MARK, sync_directory, sync_file, temporary_sibling
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Stored

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""What link(2) says on file systems such as FAT and most that are mounted through FUSE."""


class LocalStorage:
    """Objects are files; each appears by a rename, or, where it must be new, by a hard link."""

    def __init__(self, url: str) -> None:
        if "://" in url and not url.startswith("file:///"):
            raise ConfigError(
                f"storage {url!r} is not known; expected s3://BUCKET/PREFIX, file:///PATH or a path"
            )
        self._root = Path(url.removeprefix("file://")).absolute()
        self.url = str(self._root)

    def list(self, prefix: str = "") -> list[Stored]:
        """All objects whose key begins with `prefix`, sorted by key."""
        found = []
        with _explained(self.url):
            for folder, _, names in os.walk(self._root, onerror=_unless_missing):
                for name in names:
                    path = Path(folder) / name
                    key = path.relative_to(self._root).as_posix()
                    if not key.startswith(prefix) or TEMPORARY_MARK in key:
                        continue
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # deleted since
                        continue
                    found.append(Stored(key, status.st_size, status.st_mtime))
        return sorted(found, key=lambda stored: stored.key)

    def get(self, key: str) -> bytes:
        """A small object's content; raises `NotFoundError`."""
        with _explained(self.url, key):
            return self._path(key).read_bytes()

    def put(self, key: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a small object; with `only_new`, raise `AlreadyExistsError` where there is one."""
        with self._written(key, only_new=only_new) as temporary:
            temporary.write_bytes(content)

    def num_bytes(self, key: str) -> int | None:
        """Size of an object; None where there is none."""
        try:
            with _explained(self.url, key):
                return self._path(key).stat().st_size
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
        with _explained(self.url, key):
            source = self._path(key).open("rb")
        # From here on nothing that is missing is the object.
        with source, path.open("wb") as target, _explained(self.url, key):
            shutil.copyfileobj(source, target)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects and the directories that this empties."""
        with _explained(self.url):
            for key in keys:
                self._path(key).unlink(missing_ok=True)
                self._remove_empty_parents(self._path(key))

    def _remove_empty_parents(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self._root:
                break
            try:
                parent.rmdir()
            except OSError:  # not empty, or gone
                break

    def abort_uploads(self, prefix: str = "", *, older_than_seconds: float = 0) -> int:
        """Delete what killed writers left, directories that they had just emptied too.

        How many files there were.
        """
        count = 0
        with _explained(self.url):
            for path in list(self._root.rglob(f"*{TEMPORARY_MARK}*")):
                key = path.relative_to(self._root).as_posix()
                try:
                    age_seconds = time.time() - path.stat().st_mtime
                    if key.startswith(prefix) and age_seconds >= older_than_seconds:
                        path.unlink()
                        self._remove_empty_parents(path)
                        count += 1
                except FileNotFoundError:  # its writer has just finished
                    continue
            for folder, _, _ in os.walk(self._root, topdown=False, onerror=_unless_missing):
                key = Path(folder).relative_to(self._root).as_posix()
                if key != "." and key.startswith(prefix):
                    # Not empty, or needed after all: its writer makes it again.
                    with suppress(OSError):
                        self._path(key).rmdir()
        return count

    def check(self) -> None:
        """Make the directory, and write to it."""
        with _explained(self.url):
            self._root.mkdir(parents=True, exist_ok=True)
            probe = temporary_sibling(self._root / "probe")
            probe.touch()
            probe.unlink()

    def _path(self, key: str) -> Path:
        return self._root / key

    @contextmanager
    def _written(self, key: str, *, only_new: bool) -> Iterator[Path]:
        path = self._path(key)
        with _explained(self.url, key):
            temporary = _fresh_file_beside(path)
            try:
                yield temporary
                sync_file(temporary)
                if only_new:
                    self._link(temporary, path)
                else:
                    temporary.replace(path)
                sync_directory(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

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
        else:
            temporary.unlink()


def _fresh_file_beside(path: Path) -> Path:
    """An empty temporary file, which keeps its directory from being deleted as empty."""
    for _ in range(10):
        temporary = temporary_sibling(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            return temporary
        except FileNotFoundError:  # deleted since, by `delete` in another process
            continue
        except FileExistsError:  # so says mkdir, too, of what was there and is deleted since
            if path.parent.exists() and not path.parent.is_dir():
                raise
    raise UnavailableError(
        f"{path.parent} is deleted as often as it is made; who else writes there?"
    )


@contextmanager
def _explained(url: str, key: str = "") -> Iterator[None]:
    """The protocol's errors for the system's."""
    where = f"{url}/{key}" if key else url
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{where} does not exist") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(
            f"{where}: {error.filename} is a file where a directory is needed, or the reverse"
        ) from None
    except PermissionError:
        raise CredentialsError(
            f"{where} may not be read or written by this user; change its permissions"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UnavailableError(f"no space is left for {where}") from None
        raise UnavailableError(f"{where} cannot be reached ({error})") from None


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
