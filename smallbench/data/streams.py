"""Files and archive members → decompressed streams and their kind, recognised by content.

The name decides only in cases that content cannot: `.csv` and `.tsv`, and JSON with a damaged first
line.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import IO, Any

from smallbench.data.encodings import BOMS
from smallbench.data.skips import DamagedFileError, UnreadableError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
"""Bytes that are read to recognise a file's kind."""
_INPUT_BYTES = 32 << 10  # LZMA can expand 7,000 times, so 32 kB is at most about 230 MB of output
_MAX_LAYERS = 4  # a.txt.gz.xz is odd but harmless; an endless nesting is an attack

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "xz",  # .lzma, its older format
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_EXPECTED = "expected text, JSON lines, CSV, parquet or tar"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or .docx, .xlsx, .epub); unpack it, or convert it to text",
    b"PK\x05\x06": "an empty zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed with lz4; use gzip, bzip2, xz or zstd",
    b"\x1f\x9d": "compressed with 'compress'; use gzip, bzip2, xz or zstd",
    b"\x89PNG": f"an image; {_EXPECTED}",
    b"\xff\xd8\xff": f"an image; {_EXPECTED}",
    b"GIF8": f"an image; {_EXPECTED}",
    b"\x7fELF": f"a program; {_EXPECTED}",
    b"%PDF": "a PDF; convert it to text",
    b"\xd0\xcf\x11\xe0": "an Office document; convert it to text",
    b"version https://git-lfs.github.com": "a git-lfs pointer, not the file; run 'git lfs pull'",
}
_NOT_PLAIN = (
    *_MAGIC,
    *_FOREIGN,
    b"PAR1",
    b"\xef\xbb\xbf",
    b"{",
    b"[",
    *(bytes([i]) + b"*M\x18" for i in range(80, 96)),
)
_JSON_NAMES, _TABLE_NAMES = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
_PACKED_NAMES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_JSON_LIST = re.compile(rb'\[\s*\{\s*"')

# What decompressors and tarfile raise on damaged or truncated input. An OSError with an errno is a
# failure to read, not damage.
DAMAGE = (UnreadableError, EOFError, lzma.LZMAError, zlib.error)


def recognise(
    raw: IO[bytes], name: str, *, buffer_bytes: int = BLOCK_BYTES
) -> tuple[io.BufferedReader, str]:
    """Decompress `raw`, in several layers if needed; return it and its kind.

    The kind is "text", "json", "table", "parquet" or "tar".
    Raises `UnreadableError` for unknown formats, and the decompressors' errors for damage.
    """
    stream: Any = io.BufferedReader(raw, buffer_bytes)
    for _ in range(_MAX_LAYERS):
        compression = _compression(stream.peek(8)[:8])
        if compression is None:
            return stream, _kind(stream.peek(HEAD_BYTES)[:HEAD_BYTES], name)
        stream = io.BufferedReader(_Decompressed(stream, compression), BLOCK_BYTES)
    raise UnreadableError(f"compressed more than {_MAX_LAYERS - 1} times over")


def _expected_kind(name: str) -> str:
    suffixes = [s.lower() for s in PurePath(name).suffixes]
    while suffixes and suffixes[-1] in _PACKED_NAMES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _JSON_NAMES:
        return "json"
    return "table" if suffix in _TABLE_NAMES else "text"


def is_plain(content: bytes) -> bool:
    """Return quickly whether a whole text is plain and needs no further check."""
    if content.startswith(_NOT_PLAIN) or b"\0" in content or b"\x1b" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _compression(head: bytes) -> str | None:
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    return "zstd" if _ZSTD_SKIPPABLE.match(head) else None


def _kind(head: bytes, name: str) -> str:
    for magic, reason in _FOREIGN.items():
        if head.startswith(magic):
            raise UnreadableError(reason)
    if head.startswith(b"PAR1"):
        return "parquet"
    if _is_tar(head[:512]):
        return "tar"
    expected = _expected_kind(name)
    for bom, encoding in BOMS:
        if head.startswith(bom):
            head = head.removeprefix(bom).decode(encoding, "ignore").encode("utf-8", "ignore")
            break
    if expected == "text" and _is_json(head.removeprefix(b"\xef\xbb\xbf").lstrip()):
        return "json"
    return expected


def _is_tar(header: bytes) -> bool:
    """Check the checksum, which every tar header has; the word "ustar" is missing in old ones."""
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_json(head: bytes) -> bool:
    if _JSON_LIST.match(head):
        return True
    line, newline, _ = head.partition(b"\n")
    if not line.startswith(b"{"):
        return False
    if not newline and len(head) > HEAD_BYTES // 2:  # one long line: its end is out of sight
        return re.match(rb'\{\s*"[^"]*"\s*:', line) is not None
    try:
        # Its encoding does not matter here, only its shape.
        return isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except ValueError:
        return False


class _Decompressed(io.RawIOBase):
    """All compressed streams of a file, one after the other.

    The standard library's readers ignore what they cannot read after the first stream, and
    zstandard's own reader takes a truncated file for a short one; here both are errors.
    """

    def __init__(self, raw: IO[bytes], compression: str) -> None:
        self._raw = raw
        self._new, self._errors = _decompressor(compression)
        self._stream = self._new()
        self._started = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; only the end of the file gives less."""
        filled = 0
        while filled < len(buffer) and (self._ready or self._advance()):
            part = self._ready[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            self._ready = self._ready[len(part) :]
            filled += len(part)
        return filled

    def _advance(self) -> bool:
        """Decompress some input; False at the end of the file."""
        block = b""
        if self._stream.eof:
            block = self._stream.unused_data
            self._stream, self._started = self._new(), False
        while True:
            if not self._started:
                block = block.lstrip(b"\0")  # padding is legal between streams
            if block:
                break
            block = self._raw.read(_INPUT_BYTES)
            if not block and self._started:
                raise EOFError("the file ends inside a compressed stream")
            if not block:
                return False
        self._started = True
        try:
            self._ready = self._stream.decompress(block)
        except self._errors as error:
            raise DamagedFileError(f"damaged ({error})") from error
        return True


def _decompressor(compression: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    if compression == "gzip":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if compression == "xz":
        return lzma.LZMADecompressor, (lzma.LZMAError,)
    if compression == "bzip2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    import zstandard

    # 2 GiB, as 'zstd --long=31' writes; the default refuses windows over 128 MiB.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return decompressor.decompressobj, (zstandard.ZstdError,)
