"""Durable local files: written to a temporary name, flushed, then renamed.

Every file that another process or a restarted run may read is written through this module, so that
a reader sees the old or the new content, never a part.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

from smallbench.errors import ConflictError, DataError, SmallbenchError, UnavailableError
from smallbench.retry import retried

T = TypeVar("T")

TEMPORARY_MARK = ".tmp-"
"""Infix of files and directories that are not finished; anything with it may be deleted."""

NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""The disk is full, a quota or size limit is reached, or the mount is read-only."""

TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTDOWN,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Errors of network disks and busy machines that often pass; reads are repeated after them."""

NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer to a call that they do not implement."""

NO_LOCKS = {*NOT_SUPPORTED, errno.ENOLCK}

NOT_PERMITTED = {errno.EACCES, errno.EPERM}

UNAVAILABLE = {*NOT_WRITABLE, *TRANSIENT_ERRNOS, *NO_LOCKS, *NOT_PERMITTED} - {errno.EINVAL}
"""Errors of the disk, not of the program: the job ends with exit code 69."""

_WRAPPED_ERRNO = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
_NUMPY_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


def errno_of(error: BaseException | None) -> int | None:
    """Return the system's error number behind an error, also if a library wrapped it.

    torch keeps it in the error's context, shutil and safetensors only in the text, and numpy
    reports a short write without a number.
    """
    for _ in range(20):  # a chain of contexts may be circular
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if match := _WRAPPED_ERRNO.search(str(error)):
            return int(match[1] or match[2])
        if _NUMPY_SHORT_WRITE.search(str(error)):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def write_error(error: BaseException, directory: Path) -> UnavailableError | None:
    """Return the sentence for a write that the disk of `directory` refused; None for other errors.

    A library may have wrapped the system's error.
    """
    number = errno_of(error)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(directory).free / 2**20:,.0f} MiB free)"
        reason = "quota is used up" if number == errno.EDQUOT else "is full"
        return UnavailableError(
            f"the disk of {directory} {reason}{free}; make room, then run the same command again"
        )
    if number == errno.EFBIG:
        return UnavailableError(
            f"a file in {directory} would be larger than its file system or 'ulimit -f' permits; "
            "choose another disk or raise the limit"
        )
    if number == errno.EROFS:
        return UnavailableError(
            f"{directory} is on a read-only file system; mount it writable or choose another place"
        )
    if number in UNAVAILABLE and not isinstance(error, OSError):  # as safetensors says it
        return UnavailableError(
            f"{directory} could not be written ({os.strerror(number)}); check its permissions, the "
            "disk and its mount"
        )
    return None


@contextmanager
def write_errors_explained(directory: Path) -> Iterator[None]:
    """Raise `UnavailableError` if the disk refuses a write, whichever library wrote."""
    try:
        yield
    except SmallbenchError:
        raise
    except Exception as error:
        if explained := write_error(error, directory):
            raise explained from None
        raise


def is_transient(error: Exception) -> bool:
    """Return whether a read may succeed after this error if it is repeated."""
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def read_retried(path: Path, read: Callable[[], T]) -> T:
    """Return `read()`; repeat it after a transient error of the disk.

    Raises `FileNotFoundError` and its kin as they are, and `UnavailableError` if the disk still
    does not answer: an unreadable file is neither missing nor damaged.
    """
    try:
        return retried(read, is_transient)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise UnavailableError(
            f"{path} could not be read ({error.strerror or error}); check the disk and its mount, "
            "then run the same command again"
        ) from None


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename inside it survives a power cut.

    Does nothing on file systems that cannot flush directories (SMB, some FUSE).
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """Return a new name beside `path` that marks its content as unfinished."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid4().hex[:12]}")


@contextmanager
def atomic_path(
    path: Path, *, publish: Callable[[Path, Path], object] = Path.replace, flush: bool = True
) -> Iterator[Path]:
    """Yield an empty file that appears at `path`, whole and flushed, if the block succeeds.

    `publish` moves it there. Without `flush`, a power cut may leave an empty file.
    """
    with write_errors_explained(path.parent):
        temporary = _fresh_file_beside(path)
        try:
            yield temporary
            if flush:
                sync_file(temporary)
            publish(temporary, path)
            if flush:
                sync_directory(path.parent)
        finally:
            with suppress(OSError):  # the disk may be gone; the first error matters
                temporary.unlink(missing_ok=True)


def _fresh_file_beside(path: Path) -> Path:
    """Return an empty temporary file, which keeps its directory from being deleted as empty."""
    for _ in range(10):
        temporary = temporary_sibling(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            return temporary
        except FileNotFoundError:  # deleted since, by `LocalStorage.delete` in another process
            continue
        except FileExistsError:  # so says mkdir, too, of what was there and is deleted since
            if path.parent.exists() and not path.parent.is_dir():
                raise
    raise UnavailableError(
        f"Could not create {path.parent} ({os.strerror(errno.ENOENT)}); choose a writable "
        "directory, or end the process that keeps deleting it"
    )


@contextmanager
def atomic_writer(path: Path, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """Yield the file of `atomic_path`, open for writing."""
    with atomic_path(path, flush=flush) as temporary, temporary.open("wb") as stream:
        yield stream


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON to `path` atomically."""
    write_text(path, indented_json(content))


def indented_json(content: Any) -> str:
    """Return `content` as indented JSON with a final newline."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises `DataError` if the file is missing or holds something else, `UnavailableError` if it
    cannot be read.
    """
    try:
        return parse_json(read_retried(path, path.read_bytes), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from None


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `content`; raise `DataError` about `name` otherwise."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise DataError(f"{name} is not a JSON object")
    return data


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; raise `UnavailableError` if it cannot be read."""

    def read() -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return read_retried(path, read)


@contextmanager
def atomic_directory(target: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a directory that appears at `target`, whole and flushed, if the block succeeds.

    It replaces what is there. Flushed files get the umask's mode.
    """
    target = target.resolve()  # the folder itself is renamed, not a link to it
    temporary, old = temporary_sibling(target), temporary_sibling(target)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        with write_errors_explained(target.parent):
            temporary.mkdir(parents=True)
            yield temporary
            if flush:
                for path in temporary.rglob("*"):
                    if path.is_file():
                        sync_file(path)
                sync_directory(temporary)
            if target.exists():
                target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            if flush:
                for path in (target, *new_parents):
                    sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file that another library wrote, and give it the umask's mode.

    safetensors writes files that only their owner may read.
    """
    mode = 0o666 & ~_umask()
    if path.stat().st_mode & 0o666 != mode:
        path.chmod(mode)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    with suppress(OSError):  # no /proc
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)  # for a moment other threads see it; Linux never comes here
    os.umask(mask)
    return mask


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether this process holds the advisory lock on `path` while the block runs.

    False if another process has it; the kernel frees it when its holder dies. Raises
    `UnavailableError` on file systems without locks.
    """
    with _lock_file(path) as stream:
        yield _is_locked(stream, path)


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold `try_lock`'s lock; raises `ConflictError(message)` when another process has it."""
    with try_lock(path) as is_mine:
        if not is_mine:
            raise ConflictError(message)
        yield


@contextmanager
def waiting_lock(path: Path, message: str) -> Iterator[None]:
    """Like `exclusive_lock`; if another process holds it, print `message` once and wait."""
    with _lock_file(path) as stream:
        if not _is_locked(stream, path):
            print(message, file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_file(path: Path) -> Iterator[IO[str]]:
    with write_errors_explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    with stream:
        yield stream


def _is_locked(stream: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UnavailableError(
            f"the file system of {path.parent} has no file locks ({error.strerror}), so two "
            "processes could write there at once; choose a local disk, or mount this one with "
            "locks (NFS: a lock daemon or version 4; Lustre: -o flock)"
        ) from None
    return True
