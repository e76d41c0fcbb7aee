"""A stream of one kind → raw documents: UTF-8 bytes, in the order of the file."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, dropwhile
from textwrap import shorten
from typing import IO, Any, cast

from smallbench.data.config import ReadOptions, Separator
from smallbench.data.encodings import Utf8, end_of_characters
from smallbench.data.skips import DamagedFileError, Skips, UnreadableError
from smallbench.data.streams import BLOCK_BYTES, DAMAGE, is_plain, recognise

MAX_DOCUMENT_BYTES = 8 << 20
"""A longer document is cut, so that memory does not depend on the corpus."""
LARGE_BYTES, SHORT_BYTES = 200_000, 40
"""A text file with one document this large, or many this short, is worth a note."""
_MAX_ARCHIVES = 4  # nested in each other

# A lone \r is a line end of old Macs; \r\r\n is one line end that was converted twice.
_BLANK_LINES = re.compile(rb"\n[ \t\f\v]*\n\s*")  # without \r, for speed
_BLANK_LINES_CR = re.compile(rb"(?:\n|\r(?!\r*\n))[ \t\f\v]*(?:\r*\n|\r)\s*")
_LINE_END = re.compile(rb"\r*\n|\r")
_TEXT_COLUMNS = {f"{size}{kind}" for size in ("", "large_") for kind in ("string", "binary")} | {
    "string_view", "binary_view"}  # fmt: skip
_MARKUP = (b"<!doctype html", b"<html", b"<?xml", b"<mediawiki")


def read_documents(
    raw: IO[bytes], name: str, options: ReadOptions, skips: Skips, *, depth: int = 0
) -> Iterator[bytes]:
    """Yield the raw documents of a file or an archive member.

    Raises `UnreadableError` and the other errors of `streams.DAMAGE` if it cannot continue.
    """
    size = len(raw.getbuffer()) if isinstance(raw, io.BytesIO) else BLOCK_BYTES
    stream, kind = recognise(raw, name, buffer_bytes=max(512, min(size + 1, BLOCK_BYTES)))
    utf8 = Utf8(name, skips, options.encoding)
    if kind == "tar":
        yield from _tar_documents(stream, options, skips, depth)
    elif kind == "text":
        separator = options.documents or ("file" if depth else "blank_line")
        yield from _text_documents(stream, utf8, separator)
    else:
        rows = Rows(name, skips, options.text_field)
        yield from _READERS[kind](stream, utf8, rows)
        rows.report()


def _text_documents(stream: io.BufferedReader, utf8: Utf8, separator: Separator) -> Iterator[bytes]:
    num_documents = num_bytes = num_lines = num_cuts = 0
    rest = b""
    for block in utf8.blocks(stream, block_bytes=BLOCK_BYTES, longest=MAX_DOCUMENT_BYTES):
        if not num_bytes and block.lstrip()[:14].lower().startswith(_MARKUP):
            utf8.note("looks like HTML or XML; its markup is read as text")
        num_bytes += len(block)
        num_lines += block.count(b"\n") or block.count(b"\r")
        *documents, rest = _cut(rest + block, separator)
        for document in filter(bytes.strip, documents):
            num_documents += 1
            yield document
        while len(rest) > MAX_DOCUMENT_BYTES:
            end = rest.rfind(b"\n", MAX_DOCUMENT_BYTES // 2, MAX_DOCUMENT_BYTES)
            if end < 0:
                end = end_of_characters(rest, MAX_DOCUMENT_BYTES)
            num_cuts += 1
            yield rest[:end]
            rest = rest[end:]
    if rest.strip():
        num_documents += 1
        yield rest
    if num_cuts:
        utf8.note(f"cut {num_cuts} times, since a document is at most 8 MiB")
    if num_documents == 1 and num_bytes >= LARGE_BYTES and separator != "file":
        utf8.note(
            f"one document of {num_bytes:,} bytes in {num_lines:,} lines: --documents={separator} "
            "found no separator; if each line is a document, give --documents=line"
        )
    if num_documents >= 1000 and num_bytes < SHORT_BYTES * num_documents:
        remedy = "file" if separator == "line" else "line or --documents=file"
        utf8.note(
            f"{num_documents:,} documents of {num_bytes // num_documents} bytes on average with "
            f"--documents={separator}; if they are parts of longer texts, give "
            f"--documents={remedy}"
        )


def _cut(text: bytes, separator: Separator) -> list[bytes]:
    if separator == "file":
        return [text]
    if separator == "line":
        return _LINE_END.split(text)
    return (_BLANK_LINES_CR if b"\r" in text else _BLANK_LINES).split(text)


class Rows:
    """Takes the text out of rows, and counts by reason the rows that have none."""

    def __init__(self, name: str, skips: Skips, text_field: str) -> None:
        self.name, self.skips, self.text_field = name, skips, text_field
        self.reasons: Counter[str] = Counter()
        self.fields: dict[str, None] = {}

    def text_of(self, row: Any) -> bytes | None:
        """Return the text of a decoded row as UTF-8, or None; dots lead into objects."""
        if not isinstance(row, dict):
            self.reasons["not a JSON object"] += 1
            return None
        value: Any = row
        for key in [self.text_field] if self.text_field in row else self.text_field.split("."):
            if not isinstance(value, dict) or key not in value:
                self.reasons[f"no field {self.text_field!r}"] += 1
                self.fields.update(dict.fromkeys(list(row)[: 30 - len(self.fields)]))
                return None
            value = value[key]
        if isinstance(value, str):
            # A lone surrogate is legal JSON; the cleaning counts it as a decoding error.
            return value.encode("utf-8", "surrogatepass")
        kind = "null" if value is None else f"a {type(value).__name__}, not a string,"
        self.reasons[f"{kind} in {self.text_field!r}"] += 1
        return None

    def report(self) -> None:
        """Add the skips, once at the end."""
        for reason, count in self.reasons.items():
            found = ""
            if reason.startswith("no field") and self.fields:
                found = f" (fields: {', '.join(map(str, self.fields))}; give --text_field=NAME)"
            self.skips.add(self.name, f"{count:,} row{'s' * (count != 1)}: {reason}{found}", count)


def _json_documents(stream: io.BufferedReader, utf8: Utf8, rows: Rows) -> Iterator[bytes]:
    # An escape is six characters for one, and other fields need room too.
    longest = 8 * MAX_DOCUMENT_BYTES
    blocks = utf8.blocks(stream, block_bytes=BLOCK_BYTES, longest=longest)
    first = next(blocks, b"")
    is_lines = not first.lstrip().startswith(b"[")
    if is_lines and first.lstrip().partition(b"\n")[0].strip() == b"{":
        is_lines = False  # an indented object
    for row in (_json_lines if is_lines else _json_values)(chain([first], blocks), rows, longest):
        if (text := rows.text_of(row)) is not None:
            yield text


def _json_lines(blocks: Iterator[bytes], rows: Rows, longest: int) -> Iterator[Any]:
    is_inside = False
    for block in blocks:
        for line in block.split(b"\n"):
            if is_inside or not line.strip():
                is_inside = False
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                rows.reasons["not JSON"] += 1
            else:
                yield row
        # The rest of a line that is too long was counted with its beginning.
        is_inside = not block.endswith((b"\n", b"\r")) and len(block) > longest


def _json_values(blocks: Iterator[bytes], rows: Rows, longest: int) -> Iterator[Any]:
    """Yield consecutive values, as in a list; `[`, `]` and commas between them are skipped."""
    decoder, rest = json.JSONDecoder(), ""
    decoded = codecs.getincrementaldecoder("utf-8")("replace")
    between = re.compile(r"[\s,\[\]]*")
    error: Exception | None = None
    for block in blocks:
        rest += decoded.decode(block)
        position = 0
        while True:
            match = between.match(rest, position)
            assert match is not None
            position = match.end()
            if position == len(rest):
                break
            try:
                row, position = decoder.raw_decode(rest, position)
            except (ValueError, RecursionError) as failure:
                error = failure  # may only be truncated here; the next block decides
                break
            yield row
        rest = rest[position:]
        if len(rest) > longest:
            break
    if rest.strip():
        rows.report()
        raise DamagedFileError(f"damaged or cut short: not a list of JSON objects ({error})")


def _table_documents(stream: io.BufferedReader, utf8: Utf8, rows: Rows) -> Iterator[bytes]:
    longest, text_field = 8 * MAX_DOCUMENT_BYTES, rows.text_field
    blocks = utf8.blocks(stream, block_bytes=BLOCK_BYTES, longest=longest)
    # Damaged bytes pass through to the cleaning, which counts them.
    lines = (
        line
        for block in blocks
        for line in block.decode("utf-8", "surrogateescape").replace("\0", "").splitlines(True)
    )
    csv.field_size_limit(longest)
    is_tabs = ".tsv" in utf8.name.lower()
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tabs else {"strict": True}
    try:
        table = csv.DictReader(dropwhile(str.isspace, _joined(lines)), **dialect)
        names = table.fieldnames or []
        if names and names.count(text_field) != 1:
            twice = f"{names.count(text_field)} columns are called {text_field!r}"
            raise UnreadableError(twice if text_field in names else _no_column(text_field, names))
        for row in table:
            if isinstance(row[text_field], str):
                yield row[text_field].encode("utf-8", "surrogateescape")
            else:
                rows.reasons[f"cut off before {text_field!r}"] += 1
    except csv.Error as error:
        raise UnreadableError(f"damaged or not a table ({error})") from None


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines that end with a line feed: `str.splitlines` also splits where CSV does not."""
    rest = ""
    for line in lines:
        rest += line
        if line.endswith(("\n", "\r")):
            yield rest
            rest = ""
    if rest:
        yield rest


def _no_column(text_field: str, names: Iterable[str]) -> str:
    listed = shorten(", ".join(map(str, names)), 300, placeholder=" …")
    return f"no column {text_field!r} among {listed}; give --text_field=NAME"


def _parquet_documents(stream: io.BufferedReader, utf8: Utf8, rows: Rows) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    text_field = rows.text_field
    with tempfile.TemporaryFile() as unpacked:
        # Parquet is read from its end; a compressed one has to be unpacked first.
        seekable: IO[bytes] = stream
        if not stream.seekable():
            while block := stream.read(BLOCK_BYTES):
                unpacked.write(block)
            seekable = unpacked
        try:
            table = pq.ParquetFile(seekable)
            kind, path = _column(table.schema_arrow, text_field)
            text_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if str(text_kind) not in _TEXT_COLUMNS:
                raise UnreadableError(f"column {text_field!r} has {kind}, not text")
            for batch in table.iter_batches(batch_size=256, columns=[text_field]):
                column = batch.column(0)
                for part in path[1:]:
                    column = pc.struct_field(column, part)
                values = column.cast(text_kind).cast(pa.large_binary()).to_pylist()
                yield from (utf8.convert(value) for value in values if value is not None)
                if num_null := values.count(None):
                    rows.reasons[f"null in {text_field!r}"] += num_null
        except pa.ArrowException as error:
            raise DamagedFileError(f"damaged or no parquet ({error})") from error


_READERS = {"json": _json_documents, "table": _table_documents, "parquet": _parquet_documents}


def _column(schema: Any, text_field: str) -> tuple[Any, list[str]]:
    path = [text_field] if text_field in schema.names else text_field.split(".")
    if path[0] not in schema.names:
        raise UnreadableError(_no_column(text_field, schema.names))
    kind = schema.field(path[0]).type
    for part in path[1:]:
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if part not in names:
            raise UnreadableError(_no_column(text_field, schema.names))
        kind = kind.field(names.index(part)).type
    return kind, path


def _tar_documents(
    stream: io.BufferedReader, options: ReadOptions, skips: Skips, depth: int
) -> Iterator[bytes]:
    """Yield documents of a tar's members, which may be compressed or archives themselves.

    Nothing is unpacked to disk. A damaged inner archive loses its rest, and is counted; the outer
    archive continues.
    """
    if depth >= _MAX_ARCHIVES:
        raise UnreadableError(f"more than {_MAX_ARCHIVES} archives inside each other")
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while member := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not member.isfile() or is_hidden_file(member.name.split("/")):
                    continue
                inner = cast(IO[bytes], archive.extractfile(member))
                try:
                    yield from _member_documents(inner, member, options, skips, depth + 1)
                except DAMAGE as error:
                    skips.add(member.name, reason_of(error))
    except tarfile.TarError as error:
        raise DamagedFileError(f"damaged or cut short ({error})") from error
    # A damaged header looks to tarfile like the end; and checksums stand at the very end.
    while block := stream.read(BLOCK_BYTES):
        if block.strip(b"\0"):
            raise DamagedFileError("damaged: there is data after the end of the archive")


def _member_documents(
    inner: IO[bytes], member: tarfile.TarInfo, options: ReadOptions, skips: Skips, depth: int
) -> Iterator[bytes]:
    """Yield the documents of a member, read in one piece if it is small: archives have millions."""
    if member.size > MAX_DOCUMENT_BYTES:
        yield from read_documents(inner, member.name, options, skips, depth=depth)
        return
    content = inner.read()
    if len(content) < member.size:
        raise EOFError("the archive ends inside this member")
    is_document = options.documents in {None, "file"} and member.name.endswith(".txt")
    if is_document and is_plain(content):  # nearly all of OpenWebText, twice as fast
        if content.strip():
            yield content
        return
    yield from read_documents(io.BytesIO(content), member.name, options, skips, depth=depth)


def is_hidden_file(parts: Iterable[str]) -> bool:
    """Return whether a path has a part that begins with a dot."""
    return any(part.startswith(".") and part not in {".", ".."} for part in parts)


def reason_of(error: BaseException) -> str:
    """Return in a few words why a file could not be read to its end."""
    if isinstance(error, UnreadableError):
        return str(error)
    return f"damaged or cut short ({error or type(error).__name__})"
