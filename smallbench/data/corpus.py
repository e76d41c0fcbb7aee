"""SOURCE → raw documents, streamed in a fixed order, with what could not be read counted.

A raw document is UTF-8 bytes as they were found; `cleaning.clean` makes text of it in a worker.
One damaged member among others is a counted skip; a source with nothing usable is a `DataError`.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from smallbench.data import installed_docs
from smallbench.errors import DataError, UnavailableError

INSTALLED_DOCS = "installed-docs"
HUB_PREFIX = "hub:"
MAX_DOCUMENT_BYTES = 8 << 20
"""A longer document is cut at a line end, so that memory does not depend on the corpus."""

_FORMATS = (".txt", ".jsonl", ".parquet", ".tar")
_COMPRESSIONS = (".gz", ".xz", ".zst")
_READABLE = "/".join(_FORMATS) + ", each also with " + "/".join(_COMPRESSIONS)
_BLOCK_BYTES = 1 << 20
_BLANK_LINES = re.compile(rb"\n[ \t\r]*\n\s*")
_NUM_NAMED_SKIPS = 100


class _UnreadableError(Exception):
    """A file or member has no text for us; its message is the reason."""


# What the readers of compressed and packed files raise on damaged or truncated input.
_DAMAGE = (
    _UnreadableError,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    tarfile.TarError,
)


@dataclass
class Skips:
    """What was passed over: how much, and the first names with their reasons."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object, count: int = 1) -> None:
        """Count `count` unreadable members or lines of `name`."""
        self.extend(Skips(count, [f"{name}: {reason}"]))

    def extend(self, others: Skips) -> None:
        """Take in what was passed over behind this."""
        self.count += others.count
        self.named += others.named[: _NUM_NAMED_SKIPS - len(self.named)]


class _File(NamedTuple):
    path: Path
    format: str
    compression: str


@dataclass
class Corpus:
    """A source that is ready to be read; `open_corpus` makes one.

    `extract`, where given, turns a raw document into text and is meant to run in a worker.
    `position_bytes` of `size_bytes` says how far the last call of `documents` has read (both 0
    where the size is not known).
    """

    source: str
    files: list[_File] = field(default_factory=list)
    extract: Callable[[bytes], bytes] | None = None
    size_bytes: int = 0
    position_bytes: int = 0
    skips: Skips = field(default_factory=Skips)
    ignored: list[Path] = field(default_factory=list)
    is_whole: bool = True
    """False for some of a source's files: what they lack is no fault of the source."""

    def documents(self) -> Iterator[bytes]:
        """All raw documents from the first on; counts `skips` anew.

        Raises `DataError` when the only file is damaged or no document was found, and
        `UnavailableError` when the hub cannot be reached.
        """
        self.skips = Skips()
        self.position_bytes = 0
        for path in self.ignored:
            self.skips.add(self._name(path), f"none of {_READABLE}")
        num_documents = 0
        if self.source == INSTALLED_DOCS:
            streams = [installed_docs.module_sources()]
        elif self.source.startswith(HUB_PREFIX):
            streams = [_hub_documents(self.source.removeprefix(HUB_PREFIX))]
        else:
            streams = [self._file_documents(file) for file in self.files]
        for stream in streams:
            for document in stream:
                num_documents += 1
                yield document
        if not num_documents and self.is_whole:
            reasons = "; ".join(self.skips.named[:3]) or "it is empty"
            raise DataError(f"no document found in {self.source}: {reasons}")

    def _file_documents(self, file: _File) -> Iterator[bytes]:
        name, start, num_documents = self._name(file.path), self.position_bytes, 0
        reader = _READERS[file.format]
        try:
            with file.path.open("rb") as raw, _decompressed(raw, file.compression) as stream:
                for document in reader(stream, name, self.skips):
                    num_documents += 1
                    self.position_bytes = start + (0 if raw.closed else raw.tell())
                    yield document
        except _DAMAGE as error:
            reason = f"{_reason(error)} after {num_documents} documents"
            if len(self.files) == 1 and self.is_whole:
                raise DataError(f"{file.path}: {reason}; replace the file") from error
            self.skips.add(name, reason)
        self.position_bytes = start + file.path.stat().st_size

    def _name(self, path: Path) -> str:
        root = Path(self.source)
        return path.relative_to(root).as_posix() if root.is_dir() else path.name


def open_corpus(source: str) -> Corpus:
    """Find what `source` names, reading nothing yet.

    A file, a folder (searched recursively, hidden files left alone) or a glob of .txt (documents
    separated by blank lines), .jsonl, .parquet (column `text`) or .tar (OpenWebText's layout),
    each also compressed; `hub:ORG/NAME`; or `installed-docs`. Raises `DataError` where there is
    nothing of the kind.
    """
    if source == INSTALLED_DOCS:
        return Corpus(source, extract=installed_docs.docstrings)
    if source.startswith(HUB_PREFIX):
        return Corpus(source)
    root = Path(source).expanduser()
    if root.is_dir():
        paths = sorted(p for p in root.rglob("*") if p.is_file() and not _is_hidden(p, root))
        nothing = f"the folder {source} holds no file"
    elif root.exists():
        paths, nothing = [root], ""
    elif glob.has_magic(source):
        # Path.glob would refuse a pattern that is an absolute path.
        found = glob.glob(str(root), recursive=True)  # noqa: PTH207
        paths = sorted(path for path in map(Path, found) if path.is_file())
        nothing = f"no file matches {source}"
    else:
        paths = []
        nothing = (
            f"{source} does not exist; expected a file, a folder, a glob, "
            f"{HUB_PREFIX}ORG/NAME or {INSTALLED_DOCS}"
        )
    files = [file for path in paths if (file := _recognise(path))]
    if not files:
        raise DataError(nothing or f"{source} has no file that ends in {_READABLE}")
    ignored = [path for path in paths if not _recognise(path)]
    size_bytes = sum(file.path.stat().st_size for file in files)
    return Corpus(str(root), files, size_bytes=size_bytes, ignored=ignored)


def share_of(corpus: Corpus, *, number: int, count: int) -> Corpus:
    """Share `number` (from 1) of `count` of the files: a run of them, of about equal size.

    The shares in their order are the corpus in its order. What has no files is all in the first.
    """
    sizes = [file.path.stat().st_size for file in corpus.files]
    mine = [
        file
        for file, share in zip(corpus.files, deal_in_runs(sizes, count), strict=True)
        if share == number
    ]
    is_first = number == 1
    if is_first and mine == corpus.files:
        return corpus
    return replace(
        corpus,
        source=corpus.source if mine or is_first else "",
        files=mine,
        size_bytes=sum(file.path.stat().st_size for file in mine),
        ignored=corpus.ignored if is_first else [],
        is_whole=False,
    )


def deal_in_runs(sizes: Sequence[int], count: int) -> list[int]:
    """A share from 1 to `count` for each of `sizes`, never falling: whose part its middle is in."""
    shares, begin, total = [], 0, max(1, sum(sizes))
    for size in sizes:
        shares.append(1 + min(count - 1, (2 * begin + size) * count // (2 * total)))
        begin += size
    return shares


def is_readable(name: str) -> bool:
    """Whether a file of that name would be read."""
    return _recognise(Path(name)) is not None


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _recognise(path: Path) -> _File | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    if suffixes and suffixes[-1] in _FORMATS:
        return _File(path, suffixes[-1], compression)
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, _UnreadableError):
        return str(error)
    return f"damaged or cut short ({error or type(error).__name__})"


def _decompressed(raw: IO[bytes], compression: str) -> io.BufferedReader:
    stream: Any = raw
    if compression == ".gz":
        stream = gzip.GzipFile(fileobj=raw)
    elif compression == ".xz":
        stream = lzma.LZMAFile(raw)  # noqa: SIM115
    elif compression == ".zst":
        stream = _ZstdFile(raw)
    return io.BufferedReader(stream, _BLOCK_BYTES)


class _ZstdFile(io.RawIOBase):
    """Like `LZMAFile`: zstandard's own reader takes a truncated file for a short one."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UnavailableError(
                ".zst needs the package 'zstandard': pip install 'smallbench[train]'"
            ) from None
        self._raw = raw
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._started = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._started = self._new(), False
            block = block or self._raw.read(1 << 17)
            if not block:
                if self._started:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._started = True
            try:
                self._ready = self._frame.decompress(block)
            except self._error as error:
                raise _UnreadableError(f"damaged ({error})") from error
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _refuse_binary(head: bytes) -> None:
    if b"\0" in head:
        raise _UnreadableError("binary content (or UTF-16) where UTF-8 text was expected")
    # An odd Latin-1 letter is repaired later; a tenth of all characters is another encoding.
    if head.decode(errors="replace").count("\ufffd") > 1 + len(head) // 10:
        raise _UnreadableError("not UTF-8 text")


def _text_documents(stream: io.BufferedReader, name: str, skips: Skips) -> Iterator[bytes]:
    """Documents separated by one or more blank lines."""
    _refuse_binary(stream.peek(8192)[:8192])
    rest = b""
    while block := stream.read(_BLOCK_BYTES):
        *documents, rest = _BLANK_LINES.split(rest + block)
        yield from filter(bytes.strip, documents)
        while len(rest) > MAX_DOCUMENT_BYTES:
            cut = max(rest.rfind(b"\n", 0, MAX_DOCUMENT_BYTES), MAX_DOCUMENT_BYTES // 2)
            yield rest[:cut]
            rest = rest[cut:]
    if rest.strip():
        yield rest


def _jsonl_documents(stream: io.BufferedReader, name: str, skips: Skips) -> Iterator[bytes]:
    _refuse_binary(stream.peek(8192)[:8192])
    num_bad = 0
    while line := stream.readline(8 * MAX_DOCUMENT_BYTES):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
        except (ValueError, KeyError, TypeError):
            text = None
        if isinstance(text, str):
            # A lone surrogate is legal JSON; the cleaning counts it as a decoding error.
            yield text.encode("utf-8", "surrogatepass")
        else:
            num_bad += 1
    if num_bad:
        skips.add(name, f"{num_bad} lines are no JSON objects with a string 'text'", num_bad)


def _parquet_documents(stream: io.BufferedReader, name: str, skips: Skips) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UnavailableError(
            ".parquet needs the package 'pyarrow': pip install 'smallbench[train]'"
        ) from None
    with tempfile.TemporaryFile() as unpacked:
        # Parquet is read from its end; a compressed one has to be unpacked first.
        seekable: IO[bytes] = stream
        if not isinstance(stream.raw, io.FileIO | io.BufferedReader):
            while block := stream.read(_BLOCK_BYTES):
                unpacked.write(block)
            seekable = unpacked
        try:
            table = pq.ParquetFile(seekable)
            if "text" not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                raise _UnreadableError(f"no column 'text' among {columns}")
            for batch in table.iter_batches(batch_size=256, columns=["text"]):
                values = batch.column(0).cast(pa.large_binary()).to_pylist()
                if None in values:
                    skips.add(name, "rows without a text", values.count(None))
                yield from (value for value in values if value is not None)
        except pa.ArrowException as error:
            raise _UnreadableError(f"damaged or no parquet ({error})") from error


def _tar_documents(stream: io.BufferedReader, name: str, skips: Skips) -> Iterator[bytes]:
    """OpenWebText's archive: a tar of xz-compressed tars of one .txt a document.

    Nothing is unpacked to disk. A damaged inner archive loses what follows the damage in it, and
    is counted; the outer archive goes on.
    """
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep one a document
            if not member.isfile():
                continue
            inner = cast(IO[bytes], archive.extractfile(member))
            try:
                if member.name.endswith(".xz"):
                    yield from _tar_documents(_decompressed(inner, ".xz"), member.name, skips)
                elif member.name.endswith(".txt"):
                    yield _whole_document(inner, member.size)
                else:
                    skips.add(member.name, "neither .txt nor .xz")
            except _DAMAGE as error:
                skips.add(member.name, _reason(error))
    # A damaged header looks to tarfile like the end; and checksums stand at the very end.
    while block := stream.read(_BLOCK_BYTES):
        if block.strip(b"\0"):
            raise _UnreadableError("damaged: there is data after the end of the archive")


def _whole_document(stream: IO[bytes], size: int) -> bytes:
    if size > MAX_DOCUMENT_BYTES:
        raise _UnreadableError(f"{size} bytes are no single document")
    document = stream.read()
    _refuse_binary(document[:8192])
    return document


_READERS: dict[str, Callable[[io.BufferedReader, str, Skips], Iterator[bytes]]] = {
    ".txt": _text_documents,
    ".jsonl": _jsonl_documents,
    ".parquet": _parquet_documents,
    ".tar": _tar_documents,
}


def _hub_documents(name: str) -> Iterator[bytes]:
    try:
        import datasets
    except ImportError:
        raise UnavailableError(
            f"{HUB_PREFIX}{name} needs the package 'datasets': pip install 'smallbench[train]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise DataError(f"{HUB_PREFIX}{name} has no column 'text', only {', '.join(row)}")
            yield row["text"].encode("utf-8", "surrogatepass")
    except OSError as error:
        raise UnavailableError(
            f"cannot read {HUB_PREFIX}{name} ({error}); check the name and the network, "
            "then run the same command again"
        ) from error
