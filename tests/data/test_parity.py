"""What prepare accepts as a tokenizer gives the same ids when transformers loads what it saves."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from smallbench.data.config import PrepareConfig
from smallbench.data.source import given_tokenizer
from smallbench.data.tokenizer import AWKWARD_TEXTS, Tokenizer, different_ids
from smallbench.errors import DataError

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LETTERS = list("abcdefghijklmnopqrstuvwxyzATESéñ東京.,'-0123456789▁Ġ")
WORDS = ["the", "art", "state", "of", "##ate", "▁the", "Ġthe", "th", "he", "st", "at", "un"]

NORMALIZERS = st.lists(
    st.sampled_from([
        normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(),
        normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip(),
        normalizers.Nmt(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"),
        normalizers.Replace("``", '"'), normalizers.BertNormalizer(lowercase=False),
        normalizers.BertNormalizer(strip_accents=False),
        normalizers.BertNormalizer(handle_chinese_chars=False, clean_text=False),
    ]),
    max_size=3,
)  # fmt: skip
PRE_TOKENIZERS = st.lists(
    st.sampled_from([
        pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.UnicodeScripts(),
        pre_tokenizers.CharDelimiterSplit("-"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Split(tokenizers.Regex(r"\d{1,3}"), "isolated"),
    ]),
    max_size=2,
)  # fmt: skip


@st.composite
def backends(draw: st.DrawFn) -> tokenizers.Tokenizer:
    specials = draw(st.sampled_from([BERT, ROBERTA]))
    unknown = specials[1] if specials is BERT else specials[3]
    order = draw(st.permutations([*LETTERS, *WORDS, *(f"##{letter}" for letter in LETTERS[:30])]))
    tokens = [*specials, *order]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    kind = draw(st.sampled_from(["WordPiece", "BPE", "Unigram"]))
    if kind == "WordPiece":
        limit = draw(st.sampled_from([5, 100]))
        prefix = draw(st.sampled_from(["##", ""]))
        model = models.WordPiece(
            vocabulary,
            unk_token=unknown,
            max_input_chars_per_word=limit,
            continuing_subword_prefix=prefix,
        )
    elif kind == "BPE":
        merges = [("t", "h"), ("th", "e"), ("h", "e"), ("s", "t"), ("a", "t"), ("u", "n")]
        merges = [m for m in merges if "".join(m) in vocabulary and all(p in vocabulary for p in m)]
        model = models.BPE(
            vocabulary,
            merges,
            unk_token=draw(st.sampled_from([unknown, None])),
            fuse_unk=draw(st.booleans()),
            ignore_merges=draw(st.booleans()),
        )
    else:
        scores = draw(st.lists(st.floats(-9, -1), min_size=len(tokens), max_size=len(tokens)))
        model = models.Unigram(
            list(zip(tokens, scores, strict=True)), unk_id=vocabulary[unknown], byte_fallback=False
        )
    backend = tokenizers.Tokenizer(model)
    if chosen := draw(NORMALIZERS):
        backend.normalizer = chosen[0] if len(chosen) == 1 else normalizers.Sequence(chosen)
    if split := draw(PRE_TOKENIZERS):
        backend.pre_tokenizer = split[0] if len(split) == 1 else pre_tokenizers.Sequence(split)
    if draw(st.booleans()):
        backend.add_special_tokens(specials)
    if draw(st.booleans()):
        backend.add_tokens([tokenizers.AddedToken("state of", normalized=draw(st.booleans()))])
    if draw(st.booleans()):
        backend.enable_truncation(8)
        backend.enable_padding()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = draw(
        st.sampled_from([
            processors.ByteLevel(),
            processors.TemplateProcessing("$A", "$A $B", []),
            processors.TemplateProcessing(
                f"$A {specials[2]}", special_tokens=[(specials[2], vocabulary[specials[2]])]
            ),
        ])
    )  # fmt: skip
    return backend


def check_parity(backend: tokenizers.Tokenizer, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        try:
            tokenizer = Tokenizer.load(path)
            tokenizer.encode_batch(AWKWARD_TEXTS)
        except DataError:
            return  # refused in one sentence
        out = Path(folder) / "out"
        tokenizer.save(out)
        exported = AutoTokenizer.from_pretrained(out)
        assert different_ids(tokenizer, exported, [*AWKWARD_TEXTS, *texts]) is None
        again = Tokenizer.load(out)
        assert again.fingerprint == tokenizer.fingerprint
        for role in ("pad", "unk", "cls", "sep", "mask"):
            assert getattr(exported, f"{role}_token_id") == getattr(tokenizer, f"{role}_id")
        pair = exported("the", "art")["input_ids"]
        assert pair[0] == tokenizer.cls_id
        assert pair[-1] == tokenizer.sep_id
        assert pair.count(tokenizer.sep_id) in {2, 3}


TEXTS = st.lists(st.text("ab theTHE éñÉ東 .,-'\n\t\u00a0\u0301▁Ġ0", max_size=30), max_size=4)


@given(backends(), TEXTS)
def test_any_accepted_tokenizer_gives_equal_ids_in_transformers(backend, texts):
    check_parity(backend, texts)


@pytest.mark.exhaustive
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(backends(), TEXTS)
def test_many_accepted_tokenizers_give_equal_ids_in_transformers(backend, texts):
    check_parity(backend, texts)


def wordpiece_json(path: Path, **changes) -> Path:
    tokens = [*BERT, *LETTERS[:26], *(f"##{letter}" for letter in LETTERS[:26])]
    model = models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    content = json.loads(backend.to_str())
    content["model"].update(changes)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unk_token": "<nothing>"}, "tokenizer"),
        ({"type": "WordLevel"}, "WordLevel is not supported"),
        ({"vocab": {"a": 0}}, "tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_encode_is_refused_in_one_sentence(tmp_path, changes, message):
    path = wordpiece_json(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(DataError, match=message):
        given_tokenizer(PrepareConfig(corpus="x", tokenizer=str(path)))


def test_a_tokenizer_with_dropout_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(
        models.BPE({t: i for i, t in enumerate([*ROBERTA, "a"])}, [], dropout=0.1)
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"dropout=0\.1 makes its ids random"):
        Tokenizer.load(tmp_path)


def test_the_classes_of_bert_and_roberta_are_named_only_if_they_rebuild_the_same(tmp_path):
    from smallbench.data.tokenizer import train_tokenizer

    texts = ["the river of stone and light"] * 20
    for kind, name in (("wordpiece", "BertTokenizer"), ("bpe", "RobertaTokenizer")):
        trained = train_tokenizer(kind, texts, vocab_size=300)
        trained.save(tmp_path / kind)
        config = json.loads((tmp_path / kind / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == name
    other = wordpiece_json(tmp_path / "tokenizer.json", max_input_chars_per_word=7)
    Tokenizer.load(other).save(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_repeated_lines_of_a_vocabulary_are_refused_with_their_numbers(tmp_path, newline):
    path = tmp_path / "vocab.txt"
    path.write_text(newline.join([*BERT, "the", "of", "the", "a", "of", ""]), newline="")
    with pytest.raises(DataError, match=r"'the' in lines 6 and 8, 'of' in lines 7 and 10"):
        Tokenizer.load(path)
    path.write_text(newline.join(["\ufeff[PAD]", *BERT[1:], "the", "a", "", ""]), newline="")
    assert Tokenizer.load(path).vocab_size == 7
    other = tmp_path / "mine.txt"
    other.write_bytes(path.read_bytes())
    assert Tokenizer.load(other).fingerprint == Tokenizer.load(path).fingerprint
