from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbench.data import shards as shards_module
from smallbench.data.cleaning import SeenHashes
from smallbench.data.packing import pack_rows, token_dtype
from smallbench.data.shards import (
    PAPER_VOCABULARIES,
    RECIPE_LENGTH,
    RECIPE_POSITIONS,
    Manifest,
    Shard,
    ShardWriter,
    TokenizerInfo,
    unigram_entropy,
)
from smallbench.errors import DataError
from smallbench.recipes import recipe_config

CLS, SEP, PAD = 1, 2, 0


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(8, 16))
def test_rows_hold_one_document_each_and_all_of_it(lengths: list[int], sequence_length: int):
    capacity = sequence_length - 2
    # Token values name their document, so that a crossing shows.
    documents = [1000 * (d + 1) + np.arange(n) for d, n in enumerate(lengths)]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *documents]).astype(np.uint32)
    rows, num_rows = pack_rows(
        flat, np.array(lengths, dtype=np.int64), sequence_length=sequence_length,
        cls_id=CLS, sep_id=SEP, pad_id=PAD,
    )  # fmt: skip
    assert rows.shape == (num_rows.sum(), sequence_length)
    of_document = np.repeat(np.arange(len(lengths)), num_rows)
    for d, tokens in enumerate(documents):
        mine = rows[of_document == d]
        assert len(mine) == -(-len(tokens) // capacity)
        for i, row in enumerate(mine):
            content = tokens[max(0, min(i * capacity, len(tokens) - capacity)) :][:capacity]
            padding = [PAD] * (capacity - len(content))
            assert row.tolist() == [CLS, *content.tolist(), SEP, *padding]
            assert not padding or len(mine) == 1


def test_ids_take_two_bytes_if_they_fit():
    assert token_dtype(65_536).str == "<u2"
    assert token_dtype(65_537).str == "<u4"


def test_writer_cuts_what_was_not_committed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 3 * 8)  # three rows of four tokens
    rows = np.arange(40, dtype="<u2").reshape(10, 4)
    writer = ShardWriter(tmp_path, "train", row_bytes=8)
    writer.append(rows)
    assert [shard.rows for shard in writer.shards()] == [3, 3, 3, 1]
    for committed in (8, 6, 4, 0):
        again = ShardWriter(tmp_path, "train", row_bytes=8, rows=committed)
        again.append(rows[committed:])
        again.commit()
        assert again.shards() == writer.shards()
        stored = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.bin")))
        assert stored == rows.tobytes()


def test_writer_refuses_files_shorter_than_committed(tmp_path: Path):
    ShardWriter(tmp_path, "train", row_bytes=8).append(np.zeros((2, 4), dtype="<u2"))
    with pytest.raises(DataError, match="lost rows"):
        ShardWriter(tmp_path, "train", row_bytes=8, rows=3)


def test_unigram_entropy_of_known_counts(tmp_path: Path):
    path = tmp_path / "eval-00000.bin"
    np.array([1, 7, 7, 8, 9, 2, 0, 0], dtype="<u2").tofile(path)
    found = unigram_entropy(
        [path], dtype=np.dtype("<u2"), vocab_size=10, special_ids=(CLS, SEP, PAD)
    )
    assert found == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(4))
    assert unigram_entropy([], dtype=np.dtype("<u2"), vocab_size=10, special_ids=()) is None


def test_seen_hashes_equal_a_set(monkeypatch):
    generator = np.random.default_rng(0)
    seen, reference = SeenHashes(np.array([3, 1], dtype=np.uint64)), {1, 3}
    for _ in range(40):
        hashes = generator.integers(0, 300_000, size=5000).astype(np.uint64)
        expected = []
        for value in hashes.tolist():
            expected.append(value not in reference)
            reference.add(value)
        assert seen.add(hashes).tolist() == expected


def make_manifest() -> Manifest:
    tokenizer = TokenizerInfo("wordpiece", 9, "f", PAD, 3, CLS, SEP, 4, (0, 1, 2, 3, 4))
    shard = Shard("train-00000.bin", 2, 32, "0" * 64)
    rows = {"train": 2, "eval": 0}
    return Manifest("a.txt", 8, "<u2", tokenizer, {}, rows, [shard], None, [], {}, "0")


@pytest.mark.parametrize("value", [None, "x", -1, [1], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["source", "sequence_length", "dtype", "tokenizer", "rows", "shards", "options"]
)
def test_a_manifest_with_a_part_of_another_kind_is_damaged(key: str, value: object, tmp_path: Path):
    make_manifest().write(tmp_path)
    whole = json.loads((tmp_path / "manifest.json").read_text())
    assert Manifest.read(tmp_path).shards == make_manifest().shards
    if type(value) is type(whole[key]) and key in {"source", "options"}:
        return
    (tmp_path / "manifest.json").write_text(json.dumps({**whole, key: value}))
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("change", [{"name": "../train-00000.bin"}, {"rows": 3}, {"bytes": 16}])
def test_a_manifest_that_contradicts_itself_is_damaged(change: dict[str, object], tmp_path: Path):
    make_manifest().write(tmp_path)
    whole = json.loads((tmp_path / "manifest.json").read_text())
    whole["shards"][0] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        Manifest.read(tmp_path)


def test_a_file_in_place_of_a_corpus_is_said_to_be_one(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a.txt is not a directory"):
        Manifest.read(tmp_path / "a.txt")


@pytest.mark.parametrize("family", [family for family, _ in PAPER_VOCABULARIES.values()])
@pytest.mark.parametrize("size", RECIPE_POSITIONS)
def test_the_recipes_that_a_summary_names_have_the_lengths_it_takes_them_to_have(family, size):
    config = recipe_config(f"{family}-{size}")
    assert config.sequence_length == RECIPE_LENGTH
    assert config.model.max_position_embeddings == RECIPE_POSITIONS[size]
