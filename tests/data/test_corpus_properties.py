"""Documents in equals documents out, or what is missing is a counted and named skip."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallbench.data.cleaning import clean
from smallbench.data.config import ReadOptions
from smallbench.data.corpus import open_corpus
from smallbench.errors import DataError
from tests.data.test_corpus import as_tar

COMPRESS = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
    "two streams": lambda content: gzip.compress(content[:40]) + gzip.compress(content[40:]),
    "twice": lambda content: gzip.compress(lzma.compress(content)),
}
SEPARATORS = {"blank_line": ("\n\n", "\n \n", "\n\n\n\t\n"), "line": ("\n", "\n\n")}
KINDS = ("blank_line", "line", "file", "json", "list", "csv", "parquet", "tar")
NAMES = ("a.txt", "a.jsonl", "a.csv", "a.parquet", "a.tar")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")

WORDS = st.text("abcZé東яñß🙂'.,-\u0301 \x0c", min_size=1, max_size=12)
LINES = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)


def cleaned(text: str) -> str:
    return clean(text.encode()).text


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, bytes, list[str], ReadOptions]:
    """Name, kind, content, the clean documents in it, and how to read it."""
    kind = draw(
        st.sampled_from(["blank_line", "line", "file", "json", "list", "csv", "parquet", "tar"])
    )
    max_lines = 1 if kind == "line" else 3
    lines = st.lists(LINES, min_size=1, max_size=max_lines).map("\n".join)
    documents = draw(st.lists(lines, min_size=1, max_size=1 if kind == "file" else 6))
    documents = [text for text in documents if cleaned(text)] or ["a river"]
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r", "\r\r\n"]))
    field = draw(st.sampled_from(["text", "content", "inner.text"]))
    options = ReadOptions(text_field=field, documents=kind if kind in {"line", "file"} else None)
    encoding = draw(st.sampled_from(ENCODINGS))
    if kind in {"blank_line", "line", "file"}:
        # A blank line inside a document would separate it.
        documents = ["\n".join(filter(cleaned, text.split("\n"))) for text in documents]
        separator = draw(st.sampled_from(SEPARATORS.get(kind, ("\n",))))
        text = separator.join(documents) + draw(st.sampled_from(["", "\n", "\n\n\n"]))
        content = text.replace("\n", line_end).encode(encoding)
    elif kind in {"json", "list"}:
        leaf = field.split(".")[-1]
        rows = [{"id": 1, leaf: text} for text in documents]
        if "." in field:
            rows = [{"inner": row} for row in rows]
        is_ascii = draw(st.booleans())
        text = (
            json.dumps(rows, ensure_ascii=is_ascii, indent=draw(st.sampled_from([None, 2])))
            if kind == "list"
            else "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows)
        )
        content = text.encode(encoding)
    elif kind == "csv":
        stream = io.StringIO()
        table = csv.writer(stream)
        table.writerows([["id", field], *([i, text] for i, text in enumerate(documents))])
        content = stream.getvalue().encode(encoding)
    elif kind == "parquet":
        types = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
        column = pa.array(documents).cast(draw(st.sampled_from(types)))
        buffer = io.BytesIO()
        pq.write_table(pa.table({field: column}), buffer)
        content = buffer.getvalue()
    else:
        content = as_tar({f"./{i}": text.encode(encoding) for i, text in enumerate(documents)})
    return ("a.csv" if kind == "csv" else "wiki_00"), kind, content, documents, options


def read(path: Path, options: ReadOptions) -> tuple[list[str], int, list[str]]:
    corpus = open_corpus(str(path), options)
    texts = [clean(document).text for document in corpus.documents()]
    return [text for text in texts if text], corpus.skips.count, corpus.skips.named


def check_documents(file, compression: str) -> None:
    name, _, content, documents, options = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(COMPRESS[compression](content))
        expected = [text for text in map(cleaned, documents) if text]
        assert read(path, options) == (expected, 0, [])


def check_damage(file, compression: str, place: float, cut: bool) -> None:
    """A checksum finds every damage: then the file is refused, or named among others."""
    name, _, content, documents, options = file
    whole = COMPRESS[compression](content)
    position = min(int(place * len(whole)), len(whole) - 1)
    flipped = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(whole[: max(position, 12)] if cut else flipped)
        expected = [text for text in map(cleaned, documents) if text]
        try:
            texts, count, named = read(path, options)
        except DataError as error:
            texts, count, named = [], 1, [str(error)]
        assert texts == expected or (count and name in named[0]), "missing in silence"
        other = Path(folder) / "z.txt"
        other.write_text("other text")
        texts, count, named = read(Path(folder), ReadOptions(text_field=options.text_field))
        assert texts[-1:] == ["other text"]
        assert (count > 0) == bool(named)


SLOW = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
DAMAGE = (st.sampled_from(["gzip", "bzip2", "xz", "zstd", "twice"]), st.floats(0, 1), st.booleans())


@given(files(), st.sampled_from(sorted(COMPRESS)))
def test_documents_in_are_documents_out(file, compression):
    check_documents(file, compression)


@given(files(), *DAMAGE)
def test_damage_is_refused_or_named(file, compression, place, cut):
    check_damage(file, compression, place, cut)


@pytest.mark.exhaustive
@SLOW
@given(files(), st.sampled_from(sorted(COMPRESS)))
def test_documents_in_are_documents_out_many_times(file, compression):
    check_documents(file, compression)


@pytest.mark.exhaustive
@SLOW
@given(files(), *DAMAGE)
def test_damage_is_refused_or_named_many_times(file, compression, place, cut):
    check_damage(file, compression, place, cut)


@given(st.binary(max_size=400), st.sampled_from(NAMES))
def test_any_bytes_are_read_or_refused_in_one_sentence(content: bytes, name: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        message = ""
        try:
            read(path, ReadOptions())
        except DataError as error:
            message = str(error)
        assert "\n" not in message
