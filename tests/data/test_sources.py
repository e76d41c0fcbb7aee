"""What --corpus may name, and what is said about what is found there."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallbench.data.config import ReadOptions
from smallbench.data.corpus import Corpus, open_corpus
from smallbench.data.skips import printable
from smallbench.errors import DataError, UnavailableError
from tests.data.test_corpus import as_tar


def read(source: Path | str, **options) -> tuple[list[str], Corpus]:
    corpus = open_corpus(str(source), ReadOptions(**options))
    return [document.decode() for document in corpus.documents()], corpus


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("a")
    (root / "sub" / "loop").symlink_to(root, target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "broken.txt").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    texts, corpus = read(root)
    assert sorted(texts) == ["a", "b"]
    assert [name.split(":")[0] for name in corpus.skips.named] == ["broken.txt", "pipe"]


def test_a_pipe_is_refused_since_a_corpus_is_read_twice(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_corpus(str(tmp_path / "pipe"))


def test_our_own_directories_inside_a_corpus_are_left_out_and_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    for name, marker in (("run", "run.json"), ("export", "smallbench.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / marker).write_text("{}")
        (tmp_path / name / "notes.txt").write_text("not text of ours")
    (tmp_path / "prepared" / "tokenizer").mkdir(parents=True)
    (tmp_path / "prepared" / "manifest.json").write_text("{}")
    (tmp_path / "prepared" / "tokenizer" / "vocab.txt").write_text("[PAD]")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.txt").write_text("b")
    corpus = open_corpus(str(tmp_path), exclude=(tmp_path / "out",))
    assert list(corpus.documents()) == [b"a"]
    assert [note.split(":")[0] for note in corpus.skips.notes] == ["export", "prepared", "run"]
    with pytest.raises(DataError, match="is a prepared corpus"):
        open_corpus(str(tmp_path / "prepared"))


def test_a_folder_of_somebody_elses_json_is_text(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "manifest.json").write_text('{"text": "a"}')
    assert read(tmp_path)[0] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UnavailableError, match="Permission denied"):
        open_corpus(str(tmp_path))


def test_a_read_error_is_unavailable_and_not_damage(tmp_path: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    corpus = open_corpus(str(tmp_path))

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("smallbench.data.corpus.read_documents", fail)
    with pytest.raises(UnavailableError, match=r"cannot read .*a\.txt \(Input/output error\)"):
        list(corpus.documents())


def test_names_that_are_not_utf_8_are_printed_with_their_bytes(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.pdf")
    (tmp_path / name).write_bytes(b"%PDF-1.7")
    (tmp_path / "a.txt").write_text("a")
    _, corpus = read(tmp_path)
    assert corpus.skips.named == ["caf\\xe9.pdf: a PDF; convert it to text"]
    assert printable("é") == "é"


@pytest.mark.parametrize("name", ["with space", "çedille 東京", "a[1]b"])
def test_any_name_is_found(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("a")
    assert read(f"~/{name}")[0] == ["a"]
    assert read(tmp_path / name / "a.txt")[0] == ["a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "empty"), ("~nobody-here/x", "nobody-here"), ("nosuch/", "does not exist")],
)
def test_a_source_that_is_not_there_is_one_sentence(source: str, message: str):
    with pytest.raises(DataError, match=message):
        open_corpus(source)


def test_a_glob_of_folders_reads_what_is_in_them(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    assert read(f"{tmp_path}/*")[0] == ["a", "b"]


# Documents


def test_each_separator_cuts_as_its_name_says(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n")
    assert read(path)[0] == ["one\ntwo", "three\n"]
    assert read(path, documents="line")[0] == ["one", "two", "three"]
    assert read(path, documents="file")[0] == ["one\ntwo\n\nthree\n"]
    archive = tmp_path / "a.tar"
    archive.write_bytes(as_tar({"1": b"one\n\ntwo", "2": b"three"}))
    assert read(archive)[0] == ["one\n\ntwo", "three"]
    assert read(archive, documents="blank_line")[0] == ["one", "two", "three"]


def test_a_large_file_without_a_blank_line_is_noted(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("a line of a story\n" * 20_000)
    texts, corpus = read(path)
    assert len(texts) == 1
    assert "one document of 360,000 bytes in 20,000 lines" in corpus.skips.notes[0]
    assert "--documents=line" in corpus.skips.notes[0]
    assert read(path, documents="line")[1].skips.notes != [], "these lines are short"
    assert read(path, documents="file")[1].skips.notes == []


def test_thousands_of_one_word_documents_are_noted(tmp_path: Path):
    (tmp_path / "a.txt").write_text("word\n\n" * 5000)
    assert "5,000 documents of 6 bytes on average" in read(tmp_path)[1].skips.notes[0]


@pytest.mark.parametrize("members", [{"x.gz": b"\x1f\x8b"}, {"x.tar": b"x" * 512}])
def test_archives_inside_archives_are_read_to_a_depth(tmp_path: Path, members):
    inner = as_tar({"a": b"text of the innermost"})
    for _ in range(2):
        inner = as_tar({"b": inner})
    (tmp_path / "a.tar").write_bytes(inner)
    assert read(tmp_path / "a.tar")[0] == ["text of the innermost"]
    for _ in range(4):
        inner = as_tar({"b": inner, "c": b"outer"})
    (tmp_path / "a.tar").write_bytes(inner)
    texts, corpus = read(tmp_path / "a.tar")
    assert set(texts) == {"outer"}
    assert "archives inside each other" in corpus.skips.named[0]


# Fields


def test_the_error_lists_the_fields_that_are_there(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "a", "meta": {"t": "b"}}\n')
    pq.write_table(pa.table({"content": ["a"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("content,n\na,1\n")
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        with pytest.raises(DataError, match=r"content.*give --text_field=NAME"):
            read(tmp_path / name)
        assert read(tmp_path / name, text_field="content")[0] == ["a"]
    assert read(tmp_path / "a.jsonl", text_field="meta.t")[0] == ["b"]


def test_rows_without_text_are_counted_by_reason(tmp_path: Path):
    rows = [{"text": "a"}, {"text": None}, {"text": 5}, {"text": ["b"]}, {"title": "c"}, 7]
    lines = [*map(json.dumps, rows), "{broken", '{"text": "d"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts, corpus = read(tmp_path)
    assert texts == ["a", "d"]
    assert corpus.skips.count == 6
    reasons = " ".join(corpus.skips.named)
    for reason in ("null", "a int", "a list", "no field", "not a JSON object", "1 row: not JSON"):
        assert reason in reasons


@pytest.mark.parametrize(
    ("column", "message"),
    [(pa.array([[1], [2]]), "list<"), (pa.array([1, 2]), "int64, not text")],
)
def test_a_column_that_is_not_text_is_refused_with_its_type(tmp_path: Path, column, message):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
    with pytest.raises(DataError, match="2 columns are called 'text'"):
        read(tmp_path / "a.csv")


def test_lzmas_older_format_is_read_and_markup_is_noted(tmp_path: Path):
    (tmp_path / "dump").write_bytes(lzma.compress(b"<?xml?><page>a", format=lzma.FORMAT_ALONE))
    texts, corpus = read(tmp_path / "dump")
    assert texts == ["<?xml?><page>a"]
    assert "looks like HTML or XML" in corpus.skips.notes[0]


def test_a_struct_and_nulls_of_parquet(tmp_path: Path):
    rows = pa.array([{"text": "a"}, None, {"text": None}])
    pq.write_table(pa.table({"row": rows}), tmp_path / "a.parquet")
    texts, corpus = read(tmp_path / "a.parquet", text_field="row.text")
    assert texts == ["a"]
    assert corpus.skips.count == 2


def test_a_line_that_is_too_long_is_one_skip(tmp_path: Path, monkeypatch):
    from smallbench.data import readers

    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    long = json.dumps({"text": "x" * 5000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n')
    texts, corpus = read(tmp_path / "a.jsonl")
    assert texts == ["a", "b"]
    assert corpus.skips.count == 1


# Data sets, as local folders


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def write_set(folder: Path, name: str, *lines: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return f"hub:{folder}"


def test_null_rows_of_a_data_set_are_counted(hub: Path):
    source = write_set(hub / "null", "train.jsonl", '{"text": "a"}', '{"text": null}')
    texts, corpus = read(source)
    assert texts == ["a"]
    assert corpus.skips.count == 1


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("validation.jsonl", '{"text": "a"}', "train.*validation"),
        ("train.jsonl", '{"text": 5}', "has int64, not text"),
        ("train.jsonl", '{"content": "a"}', "no column 'text', only content; give --text_field"),
        ("train.jsonl", '{"text": ["a"]}', "not text"),
        ("train.jsonl", "{broken", "could not be read"),
    ],
)
def test_a_data_set_without_text_is_refused_with_one_sentence(hub: Path, name, line, message):
    source = write_set(hub / "set", name, line)
    with pytest.raises(DataError, match=message) as caught:
        read(source)
    assert "\n" not in str(caught.value)


def test_a_configuration_is_named_after_a_colon(hub: Path):
    for name in "ab":
        write_set(hub / "set", f"{name}/train.jsonl", json.dumps({"text": name}))
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl" for name in "ab")
    (hub / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    assert read(f"hub:{hub}/set:b")[0] == ["b"]
    with pytest.raises(DataError, match=r"\(ValueError: Config name is missing.*'a', 'b'"):
        read(f"hub:{hub}/set")
    with pytest.raises(DataError, match=r"\(ValueError: BuilderConfig 'c' not found.*'a', 'b'"):
        read(f"hub:{hub}/set:c")


def test_a_data_set_with_a_script_is_one_sentence(hub: Path):
    (hub / "set").mkdir()
    (hub / "set" / "set.py").write_text("import datasets\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        read(f"hub:{hub}/set")
