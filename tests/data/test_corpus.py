from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from smallbench.data import readers
from smallbench.data.cleaning import clean
from smallbench.data.corpus import open_corpus
from smallbench.errors import DataError, UnavailableError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}


def as_txt(documents: list[str]) -> bytes:
    return "\n \n\n".join(documents).encode()


def as_jsonl(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": d, "id": 1}) + "\n" for d in documents).encode()


def as_parquet(documents: list[str]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), stream)
    return stream.getvalue()


def as_tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def inner_archive(documents: list[str]) -> bytes:
    return lzma.compress(as_tar({f"{i:07d}.txt": d.encode() for i, d in enumerate(documents)}))


def read(source: Path | str) -> tuple[list[str], list[str]]:
    corpus = open_corpus(str(source))
    texts = [clean(document).text for document in corpus.documents()]
    return texts, corpus.skips.named


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("suffix", "form"), [(".txt", as_txt), (".jsonl", as_jsonl), (".parquet", as_parquet)]
)
def test_every_format_gives_the_same_documents(
    tmp_path: Path, documents: list[str], suffix: str, form, compression: str
):
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](form(documents)))
    assert read(path) == (documents, [])


def test_documents_across_read_blocks(tmp_path: Path, documents: list[str], monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    (tmp_path / "corpus.txt").write_bytes(as_txt(documents[:40]))
    assert read(tmp_path / "corpus.txt")[0] == documents[:40]


def test_endless_document_is_cut_at_a_line_end(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    lines = [f"line {i}" for i in range(1000)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    texts, _ = read(tmp_path / "corpus.txt")
    assert "\n".join(texts).split("\n") == lines
    assert max(map(len, texts)) <= 1000


def test_an_endless_line_is_cut_between_characters(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 1001)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    text = "дождь 東京 😀 x" * 1000
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "corpus.txt"))
    parts = [document.decode() for document in corpus.documents()]  # strict
    assert "".join(parts) == text
    assert max(len(part.encode()) for part in parts) <= 1001
    assert corpus.skips.notes == [
        f"corpus.txt: cut {len(parts) - 1} times, since a document is at most 8 MiB"
    ]


def test_folder_and_glob_are_read_in_order_and_other_files_are_named(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.jsonl.gz").write_bytes(gzip.compress(as_jsonl(["two"])))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    texts, skipped = read(tmp_path)
    assert texts == ["one", "two"]
    assert [name.split(":")[0] for name in skipped] == ["picture.png"]
    assert read(f"{tmp_path}/**/*.jsonl.gz")[0] == ["two"]


def test_openwebtext_archive_gives_one_document_a_text(tmp_path: Path, documents: list[str]):
    with_blank_lines = [d.replace("\n", "\n\n") for d in documents]
    outer = {
        f"openwebtext/urlsf_subset{i:02d}-1_data.xz": inner_archive(with_blank_lines[i::3])
        for i in range(3)
    }
    (tmp_path / "openwebtext.tar.xz").write_bytes(lzma.compress(as_tar(outer)))
    expected = [d for i in range(3) for d in documents[i::3]]
    assert read(tmp_path / "openwebtext.tar.xz") == (expected, [])


def test_damaged_archive_member_is_a_named_skip(tmp_path: Path, documents: list[str]):
    damaged = bytearray(inner_archive(documents))
    damaged[len(damaged) // 2] ^= 0xFF
    outer = {
        "1_data.xz": inner_archive(["first"]),
        "2_data.xz": bytes(damaged),
        "3_data.xz": inner_archive(documents)[:-500],
        "4_data.xz": inner_archive(["last", "bin\0ary"]),
    }
    (tmp_path / "o.tar.xz").write_bytes(lzma.compress(as_tar(outer)))
    texts, skipped = read(tmp_path / "o.tar.xz")
    assert texts[0] == "first"
    assert texts[-1] == "last"
    assert [name.split(":")[0] for name in skipped] == ["2_data.xz", "3_data.xz", "0000001.txt"]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".tar", ".parquet"])
def test_truncated_file_is_one_sentence_alone_and_a_skip_among_others(
    tmp_path: Path, documents: list[str], suffix: str, compression: str
):
    form = {".txt": as_txt, ".jsonl": as_jsonl, ".parquet": as_parquet}
    content = (
        as_tar({f"{i}.txt": d.encode() for i, d in enumerate(documents)})
        if suffix == ".tar"
        else form[suffix](documents)
    )
    path = tmp_path / f"corpus{suffix}{compression}"
    whole = COMPRESS[compression](content)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"corpus.*(damaged|cut short).*replace the file"):
        read(path)
    (tmp_path / "other.txt").write_text("other")
    texts, skipped = read(tmp_path)
    assert texts[-1] == "other"
    assert [name.split(":")[0] for name in skipped] == [path.name]


@pytest.mark.parametrize("content", [bytes(range(256)) * 40, b"\x89PNG", b"PK\x03\x04" + b"x" * 99])
def test_binary_file_is_one_sentence_alone_and_a_skip_among_others(tmp_path: Path, content: bytes):
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.txt: .*(binary|image|zip)"):
        read(tmp_path / "b.txt")
    (tmp_path / "a.txt").write_text("text")
    texts, skipped = read(tmp_path)
    assert texts == ["text"]
    assert len(skipped) == 1


def test_only_unreadable_files_are_one_sentence(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\0" * 100)
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"no document found in .*: a\.txt: binary"):
        read(tmp_path)


def test_json_lines_without_a_text_are_counted(tmp_path: Path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"title": 1}\nnot json\n[]\n{"text": "b"}')
    corpus = open_corpus(str(tmp_path / "c.jsonl"))
    assert list(corpus.documents()) == [b"a", b"b"]
    assert corpus.skips.count == 3


def test_lone_surrogate_in_json_is_a_decoding_error(tmp_path: Path):
    (tmp_path / "c.jsonl").write_text('{"text": "a\\ud800b"}')
    [document] = open_corpus(str(tmp_path / "c.jsonl")).documents()
    assert clean(document).decode_errors > 0


def test_parquet_without_text_names_its_columns(tmp_path: Path):
    pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column 'text' among title, body"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.txt", "does not exist"), ("empty", "has no file"), ("*.txt", "no file matches")],
)
def test_nothing_to_read_is_said_before_anything_starts(tmp_path: Path, name: str, message: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_corpus(str(tmp_path / name))


def test_files_are_recognised_by_content_whatever_their_names(tmp_path: Path, documents: list[str]):
    docs = documents[:30]
    contents = {
        "childes.train": as_txt(docs),
        "wiki_00": as_jsonl(docs),
        "part-0.snappy": as_parquet(docs),
        "texts.gz": lzma.compress(as_txt(docs)),
        "dump": gzip.compress(
            bz2.compress(as_tar({f"./{i}": d.encode() for i, d in enumerate(docs)}))
        ),
        "all.json": json.dumps([{"text": d} for d in docs], indent=1).encode(),
        "UPPER.TXT": as_txt(docs),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == (docs, []), name


def test_hub_without_datasets_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableError, match="pip install"):
        list(open_corpus("hub:ORG/NAME").documents())


def test_hub_out_of_reach_is_one_sentence(monkeypatch):
    import datasets

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UnavailableError, match=r"hub:ORG/NAME.*no route"):
        list(open_corpus("hub:ORG/NAME").documents())


def test_hub_rows_are_documents(monkeypatch):
    import datasets

    rows = [{"text": "a"}, {"text": "b"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_kwargs: rows)
    assert list(open_corpus("hub:ORG/NAME").documents()) == [b"a", b"b"]


def test_installed_docs_are_docstrings_in_a_fixed_order():
    corpus = open_corpus("installed-docs")
    extract = corpus.extract
    assert extract is not None
    first = [raw for raw, _ in zip(corpus.documents(), range(30), strict=False)]
    again = [raw for raw, _ in zip(corpus.documents(), range(30), strict=False)]
    assert first == again
    assert sum(len(extract(raw)) for raw in first) > 10_000
    source = b'"""Module."""\ndef f():\n    """Function."""\n    return """no docstring"""\n'
    assert extract(source) == b"Module.\n\nFunction."
    assert extract(b"print 'Python 2'") == b""
