"""A corpus becomes rows of tokens: complete, counted, the same whatever the number of workers."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.data.shards import Manifest, TokenRows, corpus_summary, verify_shards
from smallbench.errors import ConfigError, ConflictError, DataError, InterruptedRunError
from smallbench.files import exclusive_lock
from smallbench.jobs.base import load
from smallbench.jobs.resolve import resolve
from smallbench.stop import Stop

pytestmark = pytest.mark.usefixtures("small_steps")


def content(directory: Path) -> dict[str, bytes]:
    """Every file with its bytes; the lock is no content."""
    files = (p for p in directory.rglob("*") if p.is_file() and p.name != "lock")
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in files}


def test_result_does_not_depend_on_the_number_of_workers(config: PrepareConfig, tmp_path: Path):
    for tokenizer in ("wordpiece", config.tokenizer):
        config = replace(config, tokenizer=tokenizer, vocab_size=500, tokenizer_sample_bytes=60_000)
        results = []
        for workers in (1, 2):
            out = tmp_path / f"{Path(tokenizer).name}-{workers}"
            prepare(config, out=out, workers=workers)
            results.append(content(out))
        assert results[0] == results[1]
        assert len([name for name in results[0] if name.startswith("train-")]) > 2


def test_every_document_is_accounted_for(
    config: PrepareConfig, documents: list[str], tmp_path: Path
):
    manifest = prepare(config, out=tmp_path / "out", workers=1)
    long_enough = [d for d in documents if len(d) >= config.min_characters]
    counts = manifest.counts
    assert counts["documents"] == len(documents)
    assert counts["too_short"] == len(documents) - len(long_enough) > 0
    assert counts["kept"] == len(set(long_enough))
    assert counts["duplicates"] == len(long_enough) - len(set(long_enough)) > 0
    assert counts["text_bytes"] == sum(len(d.encode()) for d in set(long_enough))
    assert 0 < manifest.rows["eval"] < 0.3 * manifest.rows["train"]
    positions = (manifest.sequence_length - 2) * sum(manifest.rows.values())
    filled = counts["tokens"] + counts["overlap_tokens"] + counts["padding_tokens"]
    assert positions == filled
    assert min(counts["overlap_tokens"], counts["padding_tokens"]) > 0
    assert "Next:" in corpus_summary(manifest, tmp_path)
    kind = {"wordpiece": "bert-tiny", "bpe": "roberta-tiny"}[manifest.tokenizer.kind]
    assert f"pretrain {kind} " in corpus_summary(manifest, tmp_path)


def test_rows_are_the_documents_in_order(
    config: PrepareConfig, documents: list[str], tokenizer_directory: Path, tmp_path: Path
):
    from smallbench.data.cleaning import is_held_out, text_hash
    from smallbench.data.tokenizer import Tokenizer

    prepare(config, out=tmp_path / "out", workers=1)
    tokenizer = Tokenizer.load(tokenizer_directory)
    for split in ("train", "eval"):
        rows = TokenRows(tmp_path / "out", split)  # type: ignore[arg-type]
        stored = rows.take(np.arange(len(rows)))
        next_row = 0
        for text in dict.fromkeys(d for d in documents if len(d) >= config.min_characters):
            if is_held_out(text_hash(text), config.eval_fraction) != (split == "eval"):
                continue
            [tokens] = tokenizer.encode_batch([text])
            for start in range(0, len(tokens), 30):
                start = max(0, min(start, len(tokens) - 30))
                part = tokens[start : start + 30].tolist()
                padding = [tokenizer.pad_id] * (30 - len(part))
                expected = [tokenizer.cls_id, *part, tokenizer.sep_id, *padding]
                assert stored[next_row].tolist() == expected
                next_row += 1
        assert next_row == len(rows)


def test_repairs_and_skips_are_counted(config: PrepareConfig, documents, tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(
        "\n\n".join(documents[:20]).encode() + b"\n\n\x07\xff " + b"x " * 60
    )
    (folder / "b.txt").write_bytes(b"\0\1\2" * 1000)
    manifest = prepare(replace(config, corpus=str(folder)), out=tmp_path / "out", workers=1)
    counts = manifest.counts
    assert (counts["decode_errors"], counts["control_characters"], counts["skipped"]) == (1, 1, 1)
    assert manifest.skipped[0].startswith("b.txt: binary")


def test_finished_directory_is_not_prepared_again(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = prepare(config, out=tmp_path / "out", workers=1)
    before = content(tmp_path / "out")
    again = prepare(config, out=tmp_path / "out", workers=2)
    assert again == first
    assert content(tmp_path / "out") == before
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
def test_other_options_are_refused_by_name(config: PrepareConfig, tmp_path: Path, finished: bool):
    out = tmp_path / "out"
    if finished:
        prepare(config, out=out, workers=1)
    else:
        with pytest.raises(InterruptedRunError):
            prepare(config, out=out, workers=1, stop=Stop(lambda: True))
    before = content(out)
    with pytest.raises(ConfigError, match=r"sequence_length 32 → 64.*another --out"):
        prepare(replace(config, sequence_length=64), out=out, workers=1)
    assert content(out) == before


def test_changed_source_is_refused(config: PrepareConfig, corpus_file: Path, tmp_path: Path):
    copy = tmp_path / "corpus.txt"
    copy.write_bytes(corpus_file.read_bytes())
    config = replace(config, corpus=str(copy))
    with pytest.raises(InterruptedRunError):
        prepare(config, out=tmp_path / "out", workers=1, stop=Stop(lambda: True))
    with copy.open("a") as stream:
        stream.write("more")
    with pytest.raises(ConfigError, match="delete"):
        prepare(config, out=tmp_path / "out", workers=1)


def test_foreign_directory_is_refused(config: PrepareConfig, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        prepare(config, out=tmp_path, workers=1)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_second_process_is_refused(config: PrepareConfig, tmp_path: Path):
    with exclusive_lock(tmp_path / "lock", "taken"), pytest.raises(ConflictError, match="--out"):
        prepare(config, out=tmp_path, workers=1)


def test_missing_source_leaves_no_directory(config: PrepareConfig, tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        prepare(replace(config, corpus="nowhere.txt"), out=tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_corpus_of_short_documents_only_is_one_sentence(config: PrepareConfig, tmp_path: Path):
    with pytest.raises(DataError, match="--min_characters=999999"):
        prepare(replace(config, min_characters=999_999), out=tmp_path / "out", workers=1)


def test_max_documents_reads_the_first_only(config: PrepareConfig, tmp_path: Path):
    manifest = prepare(replace(config, max_documents=50), out=tmp_path / "out", workers=1)
    assert manifest.counts["documents"] == 50


def test_token_rows_take_any_rows_across_shards(config: PrepareConfig, tmp_path: Path):
    manifest = prepare(config, out=tmp_path / "out", workers=1)
    train = [s for s in manifest.shards if s.name.startswith("train-")]
    assert len(train) > 2
    whole = np.concatenate(
        [np.fromfile(tmp_path / "out" / s.name, dtype="<u2").reshape(-1, 32) for s in train]
    )
    rows = TokenRows(tmp_path / "out", "train")
    indices = np.random.default_rng(0).integers(0, len(rows), size=500)
    taken = rows.take(indices)
    assert taken.dtype == np.int64
    assert np.array_equal(taken, whole[indices])
    with pytest.raises(IndexError):
        rows.take(np.array([len(rows)]))
    with pytest.raises(IndexError):
        rows.take(np.array([-1]))


def test_damaged_directories_are_one_sentence(config: PrepareConfig, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="does not exist"):
        TokenRows(out, "train")
    prepare(config, out=out, workers=1)
    verify_shards(out)
    shard = out / "train-00001.bin"
    original = shard.read_bytes()
    shard.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    TokenRows(out, "train")
    with pytest.raises(DataError, match="SHA-256"):
        verify_shards(out)
    shard.write_bytes(original[:-2])
    with pytest.raises(DataError, match=r"train-00001\.bin has .* bytes"):
        TokenRows(out, "train")
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        TokenRows(out, "train")
    (out / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(DataError, match="is damaged"):
        TokenRows(out, "train")


def test_without_held_out_documents_there_is_no_entropy(config: PrepareConfig, tmp_path: Path):
    manifest = prepare(replace(config, eval_fraction=0.0), out=tmp_path / "out", workers=1)
    assert manifest.eval_unigram_entropy_nats is None
    assert manifest == Manifest.read(tmp_path / "out")
    printed = corpus_summary(manifest, tmp_path)
    assert "WARNING: no held-out rows, so 'smallbench pretrain' will refuse" in printed
    assert "Next:" not in printed
    with pytest.raises(DataError, match="no held-out rows; prepare more text"):
        TokenRows(tmp_path / "out", "eval")


@pytest.mark.parametrize(
    ("key", "value"), [("sequence_length", 4), ("eval_fraction", 1.0), ("min_characters", 0)]
)
def test_impossible_options_are_refused(key: str, value: float):
    with pytest.raises(ConfigError, match=key):
        PrepareConfig(corpus="x", **{key: value})  # type: ignore[arg-type]


@pytest.mark.real_data
def test_real_text_is_kept_whole(test_data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.undo()
    manifest = prepare(
        PrepareConfig(
            corpus=str(test_data / "corpus" / "enwiki_50mb.txt.xz"),
            tokenizer=str(test_data / "vocab" / "bert_uncased" / "vocab.txt"),
            max_documents=300,
        ),
        out=tmp_path / "out",
    )
    assert manifest.counts["kept"] == 300
    assert manifest.counts["decode_errors"] == 0
    unknown = TokenRows(tmp_path / "out", "train").take(np.arange(2000)) == 100
    assert unknown.mean() < 0.001


# What is refused leaves nothing behind; what is odd is said


def test_a_refused_command_leaves_nothing_and_the_corrected_one_works(
    config: PrepareConfig, tmp_path: Path
):
    out = tmp_path / "out"
    trained = replace(config, tokenizer="wordpiece", vocab_size=500)
    for refused in (
        replace(trained, vocab_size=10),
        replace(trained, tokenizer="bert-base-uncased"),
        replace(trained, min_characters=999_999),
        replace(config, min_characters=999_999),
    ):
        with pytest.raises((ConfigError, DataError)):
            prepare(refused, out=out, workers=1)
        assert not out.exists()
    out.mkdir()
    with pytest.raises(ConfigError, match="vocab_size=10"):
        prepare(replace(trained, vocab_size=10), out=out, workers=1)
    assert [path.name for path in out.iterdir()] == ["lock"]
    assert prepare(trained, out=out, workers=1).counts["kept"] > 0


def test_a_refused_command_keeps_what_an_earlier_one_wrote(config: PrepareConfig, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        prepare(config, out=out, workers=1, stop=Stop(lambda: True))
    before = content(out)
    with pytest.raises(ConfigError, match="other options"):
        prepare(replace(config, min_characters=999_999), out=out, workers=1)
    assert content(out) == before


def test_an_out_inside_the_corpus_is_not_read_and_the_same_command_continues(
    config: PrepareConfig, corpus_file: Path, tmp_path: Path
):
    (tmp_path / "corpus.txt").write_bytes(corpus_file.read_bytes())
    config = replace(config, corpus=str(tmp_path))
    for name in ("first", "second"):
        with pytest.raises(InterruptedRunError):
            prepare(config, out=tmp_path / name, workers=1, stop=Stop(lambda: True))
        prepare(config, out=tmp_path / name, workers=1)
    first, second = (Manifest.read(tmp_path / name) for name in ("first", "second"))
    assert first.shards == second.shards
    assert first.counts == second.counts
    assert second.notes == ["first: a prepared corpus; left out of the corpus"]


@pytest.mark.parametrize(
    ("corpus", "what"), [("text", "is the corpus itself"), ("text/part", "contains the corpus")]
)
def test_an_out_with_the_whole_corpus_in_it_is_refused(
    config: PrepareConfig, tmp_path: Path, corpus: str, what: str
):
    (tmp_path / "text" / "part").mkdir(parents=True)
    (tmp_path / "text" / "part" / "a.txt").write_text("A document. " * 99)
    with pytest.raises(ConfigError, match=f"text {what}; choose another --out"):
        prepare(replace(config, corpus=str(tmp_path / corpus)), out=tmp_path / "text")


def test_a_corpus_of_another_release_is_refused(config: PrepareConfig, tmp_path: Path):
    out = tmp_path / "out"
    prepare(config, out=out, workers=1)
    whole = json.loads((out / "manifest.json").read_text())
    for change, message in (
        ({"schema_version": 9}, "has schema 9, this version reads 1; prepare into a new directory"),
        ({"colour": "red"}, "is damaged or of another version .*colour.*; delete"),
        ({"options": {**whole["options"], "colour": "red"}}, "colour 'red' → None"),
    ):
        (out / "manifest.json").write_text(json.dumps(whole | change))
        with pytest.raises((ConfigError, DataError), match=message):
            prepare(config, out=out, workers=1)


@pytest.mark.parametrize(
    ("text", "changes", "warning"),
    [
        ("".join(chr(0xE01 + i % 40) for i in range(300)), {"tokenizer": "given"}, "pointless"),
        ("ab " * 100, {"sequence_length": 1000}, "of the positions are padding"),
        (
            "a river " * 40,
            {"min_characters": 340, "eval_fraction": 0.5},
            "are too short and dropped",
        ),
    ],
)
def test_the_summary_warns_in_words(
    config: PrepareConfig, tmp_path: Path, text: str, changes, warning: str
):
    texts = [f"{text} {i}" + "x" * (i % 7 == 0) * 40 for i in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    if changes.get("tokenizer") == "given":
        changes = {}
    config = replace(config, corpus=str(tmp_path / "a.txt"), **changes)
    out = tmp_path / "o u't"
    printed = corpus_summary(prepare(config, out=out, workers=1), out)
    assert warning in printed
    assert f"{len(texts)} documents read" in printed
    assert f"--data={shlex.quote(str(out))} " in printed


@pytest.mark.parametrize(
    ("length", "flags"),
    [
        (64, " --sequence_length=64"),
        (128, ""),
        (256, " --sequence_length=256 --model.max_position_embeddings=256"),
    ],
)
def test_the_next_command_fits_the_rows(
    config: PrepareConfig, tmp_path: Path, length: int, flags: str
):
    config = replace(config, sequence_length=length)
    printed = corpus_summary(prepare(config, out=tmp_path / "out", workers=1), tmp_path)
    assert printed.endswith(f" --run_dir=runs/bert-tiny{flags}")
    words = shlex.split(printed.splitlines()[-1])[2:]
    assert resolve(load("pretrain"), words, {})[2].sequence_length == length


def test_lines_in_place_of_documents_are_warned_of(config: PrepareConfig, tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n".join(f"a short line {i:04}" for i in range(1100)))
    config = replace(config, corpus=str(tmp_path / "a.txt"), documents="line", min_characters=10)
    printed = corpus_summary(prepare(config, out=tmp_path / "out", workers=1), tmp_path)
    assert "\n17 bytes a kept document; " in printed
    assert "documents have 17 bytes on average: these look like lines" in printed


def test_few_held_out_rows_are_counted_and_not_called_none(config: PrepareConfig, tmp_path: Path):
    manifest = prepare(replace(config, max_documents=60), out=tmp_path / "out", workers=1)
    printed = corpus_summary(manifest, tmp_path)
    assert 0 < manifest.rows["eval"] < 100
    assert f"only {manifest.rows['eval']} held-out rows" in printed
    assert "no held-out rows" not in printed


def test_beginnings_of_held_out_documents_stand_beside_the_tokenizer(
    config: PrepareConfig, documents: list[str], tmp_path: Path
):
    prepare(config, out=tmp_path / "out", workers=1)
    texts = json.loads((tmp_path / "out" / "tokenizer" / "held_out.json").read_text())
    assert 5 < len(texts) <= 20
    assert all(any(d.startswith(text) for d in documents) for text in texts)


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", -1), ("max_documents", 0), ("sequence_length", 1 << 20), ("text_field", "")],
)
def test_counts_and_names_that_make_no_sense_are_refused(key: str, value):
    with pytest.raises(ConfigError, match=key):
        PrepareConfig(**{"corpus": "x", key: value})


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_makes_no_sense_is_refused(config, tmp_path, workers: int):
    with pytest.raises(ConfigError, match=f"workers={workers} must be at least 1"):
        prepare(config, out=tmp_path / "out", workers=workers)


def test_a_file_in_place_of_the_out_is_refused(config: PrepareConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; expected a directory"):
        prepare(config, out=tmp_path / "file", workers=1)
