from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbench.data import word_cache
from smallbench.data.cleaning import clean
from smallbench.data.corpus import open_corpus
from smallbench.data.tokenizer import Tokenizer, train_tokenizer
from smallbench.errors import ConfigError, DataError

KINDS = ("wordpiece", "bpe")


@pytest.fixture(scope="module")
def trained(documents: list[str]) -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(kind, documents, vocab_size=420) for kind in KINDS}


def backend_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_word_cache_equals_the_tokenizer(trained, documents, kind: str):
    tokenizer = trained[kind]
    assert tokenizer._cache is not None
    encoded = tokenizer.encode_batch(documents)
    assert [ids.tolist() for ids in encoded] == [backend_ids(tokenizer, d) for d in documents]


@given(st.lists(st.text("ab é\u0301.,'[SEP] </s>\n\t\u00a0\u200b東İςΣ", max_size=40), max_size=4))
def test_word_cache_equals_the_tokenizer_on_any_text(trained, texts: list[str]):
    for tokenizer in trained.values():
        encoded = tokenizer.encode_batch(texts)
        assert [ids.tolist() for ids in encoded] == [backend_ids(tokenizer, t) for t in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_full_word_cache_starts_afresh_without_changing_ids(
    documents, tmp_path, trained, kind, monkeypatch
):
    trained[kind].save(tmp_path)
    expected = trained[kind].encode_flat(documents)
    monkeypatch.setattr(word_cache, "MAX_WORDS", 50)
    tokenizer = Tokenizer.load(tmp_path)
    parts = [tokenizer.encode_flat(documents[i : i + 20]) for i in range(0, len(documents), 20)]
    assert np.array_equal(np.concatenate([ids for ids, _ in parts]), expected[0])
    assert np.array_equal(np.concatenate([lengths for _, lengths in parts]), expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_plain_text(trained, kind: str):
    tokenizer = trained[kind]
    [ids] = tokenizer.encode_batch(["the [MASK] [SEP] </s> <mask> model"])
    assert not set(ids.tolist()) & (set(tokenizer.special_ids) - {tokenizer.unk_id})


TRAIN = """
import sys
from pathlib import Path
from smallbench.data.tokenizer import train_tokenizer
texts = Path(sys.argv[1]).read_text().split("\\n\\n")
train_tokenizer(sys.argv[2], texts, vocab_size=420).save(Path(sys.argv[3]))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_bytes_in_every_process(corpus_file: Path, tmp_path, kind: str):
    for name in "abc":
        command = [sys.executable, "-c", TRAIN, str(corpus_file), kind, str(tmp_path / name)]
        subprocess.run(command, check=True)
    for path in (tmp_path / "a").iterdir():
        for other in "bc":
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes(), path.name


def test_special_ids_follow_bert_and_roberta(trained):
    t = trained["wordpiece"]
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 1, 2, 3, 4)
    t = trained["bpe"]
    assert (t.cls_id, t.pad_id, t.sep_id, t.unk_id, t.mask_id) == (0, 1, 2, 3, t.vocab_size - 1)
    assert t.vocab_size == 420


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_loads_in_transformers_with_equal_ids(
    trained, documents, tmp_path, kind: str
):
    from transformers import AutoTokenizer

    tokenizer = trained[kind]
    tokenizer.save(tmp_path, model_max_length=128)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 128
    assert len(loaded) == tokenizer.vocab_size
    plain = [d.replace("[MASK]", "x").replace("</s>", "y") for d in documents]
    for text, ids in zip(plain, tokenizer.encode_batch(plain), strict=True):
        assert loaded(text, truncation=False)["input_ids"] == [
            tokenizer.cls_id,
            *ids.tolist(),
            tokenizer.sep_id,
        ]
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(loaded, f"{role}_token_id") == getattr(tokenizer, f"{role}_id")


def test_byte_level_bpe_round_trips(trained, documents):
    tokenizer = trained["bpe"]
    for document, ids in zip(documents, tokenizer.encode_batch(documents), strict=True):
        assert tokenizer.decode(ids) == document


@pytest.mark.parametrize("kind", KINDS)
def test_every_stored_form_loads_alike(trained, documents, tmp_path, kind: str):
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    names = {"wordpiece": ["vocab.txt"], "bpe": ["vocab.json", "merges.txt"]}[kind]
    for path in [tmp_path / "tokenizer.json", *(tmp_path / name for name in names)]:
        loaded = Tokenizer.load(path)
        assert (loaded.kind, loaded.vocab_size) == (kind, tokenizer.vocab_size)
        assert loaded.special_ids == tokenizer.special_ids
        assert np.array_equal(loaded.encode_flat(documents)[0], tokenizer.encode_flat(documents)[0])


def test_vocabulary_with_capitals_is_cased(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "##b", "a"]))
    assert [ids.tolist() for ids in Tokenizer.load(path).encode_batch(["Ab ab"])] == [[5, 6, 7, 6]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json"),
        ({"vocab.txt": "a\nb"}, r"no \[PAD\]"),
        ({"vocab.json": "{}"}, "merges.txt is missing"),
        ({"tokenizer.json": "{"}, "cannot be read as a tokenizer"),
        ({"tokenizer.json": json.dumps({"model": {"type": "?"}})}, "cannot be read as a tokenizer"),
    ],
)
def test_unusable_tokenizer_is_one_sentence(tmp_path: Path, files: dict[str, str], message: str):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_smaller_than_the_alphabet_is_refused(documents, kind: str):
    with pytest.raises(ConfigError, match="vocab_size=20 is too small"):
        train_tokenizer(kind, documents, vocab_size=20)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bert_uncased/vocab.txt", "bert_uncased", "roberta/vocab.json"])
def test_word_cache_equals_the_tokenizer_on_real_text(test_data: Path, name: str):
    tokenizer = Tokenizer.load(test_data / "vocab" / name)
    assert tokenizer._cache is not None
    raw = open_corpus(str(test_data / "corpus" / "enwiki_50mb.txt.xz")).documents()
    texts = [clean(document).text for document, _ in zip(raw, range(150), strict=False)]
    ids, lengths = tokenizer.encode_flat(texts)
    expected = tokenizer._backend.encode_batch(texts, add_special_tokens=False)
    assert ids.tolist() == [i for encoding in expected for i in encoding.ids]
    assert lengths.tolist() == [len(encoding.ids) for encoding in expected]
