"""The tokenizer: trained on a sample or loaded, applied, saved in Hugging Face's layout.

WordPiece follows BERT uncased and byte-level BPE follows RoBERTa, so that what is saved loads as
`AutoTokenizer` with equal ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.data import TOKENIZERS
from smallbench.data.backends import (
    byte_level_bpe,
    byte_level_bpe_from_files,
    finish_like_roberta,
    read_vocabulary,
    surround_like_bert,
    wordpiece,
)
from smallbench.data.word_cache import WordCache
from smallbench.errors import ConfigError, DataError
from smallbench.files import write_json

KINDS = ("WordPiece", "BPE", "Unigram")

# Role → its token in BERT's convention and in RoBERTa's.
_ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


class Tokenizer:
    """A `tokenizers.Tokenizer` that reads special tokens in a text as plain text.

    `kind` is "wordpiece", "bpe" or "unigram"; `vocab_size` is the largest id plus one. Raises
    `DataError` for another kind, a missing special token, or ids that are a matter of chance.
    """

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        model = json.loads(backend.to_str())["model"]
        if model["type"] not in KINDS:
            raise DataError(
                f"tokenizer model {model['type']} is not supported; use {', '.join(KINDS)}"
            )
        if model.get("dropout"):
            raise DataError(
                f"dropout={model['dropout']} makes its ids random; set it to null in tokenizer.json"
            )
        self.kind = model["type"].lower()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._tokens: dict[str, str] = {}
        for role, names in _ROLES.items():
            known = [name for name in names if name in vocabulary]
            if not known:
                raise DataError(f"the tokenizer has no {' or '.join(names)} token")
            self._tokens[role] = known[0]
        unknown = model.get("unk_token")
        if self.kind == "unigram" and model.get("unk_id") is not None:
            unknown = model["vocab"][model["unk_id"]][0]
        self._tokens["unk"] = unknown or self._tokens["unk"]
        self.pad_id = self._id("pad")
        self.unk_id = self._id("unk")
        self.cls_id = self._id("cls")
        self.sep_id = self._id("sep")
        self.mask_id = self._id("mask")
        self._add_specials_as_rows_do()
        self._content: dict[str, Any] = json.loads(backend.to_str())
        added = {token["id"] for token in self._content["added_tokens"] if token["special"]}
        roles = {self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id}
        self.special_ids = tuple(sorted(added | roles))

    def _id(self, role: str) -> int:
        number = self._backend.token_to_id(self._tokens[role])
        if number is None:
            raise DataError(f"its {role} token {self._tokens[role]!r} is not in its vocabulary")
        return int(number)

    def _add_specials_as_rows_do(self) -> None:
        """Make the saved tokenizer add `[CLS] text [SEP]`, as in the rows of a corpus.

        A tokenizer.json may have no such post-processor; then fine-tuning would get other input.
        """
        plain, single = (self._backend.encode("a", add_special_tokens=b).ids for b in (False, True))
        pair = self._backend.encode("a", "a").ids
        inside = [*plain, self.sep_id]
        if single == [self.cls_id, *inside] and pair in (
            [self.cls_id, *inside, *inside],
            [self.cls_id, *inside, self.sep_id, *inside],
        ):
            return
        surround_like_bert(self._backend, self._tokens["cls"], self._tokens["sep"])

    @property
    def special_tokens(self) -> list[str]:
        """Spellings that transformers reads as special tokens, and a corpus as text."""
        added = [token["content"] for token in self._content["added_tokens"] if token["special"]]
        return sorted({*added, *self._tokens.values()})

    @cached_property
    def is_canonical(self) -> bool:
        """Whether BERT's or RoBERTa's class rebuilds just this tokenizer from its vocabulary."""
        from tokenizers import models

        model = self._content["model"]
        try:
            if self.kind == "wordpiece":
                tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
                # White space would break the lines of vocab.txt.
                if any(token.split() != [token] for token in tokens):
                    return False
                rebuilt = wordpiece(tokens)
            elif self.kind == "bpe":
                merges = [tuple(pair) for pair in model["merges"]]
                rebuilt = finish_like_roberta(byte_level_bpe(models.BPE(model["vocab"], merges)))
            else:
                return False
        # a normalizer that cannot be rebuilt (tokenizers raises bare Exception) is another one
        except Exception:
            return False
        return bool(json.loads(rebuilt.to_str()) == self._content)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids; the layout of the file does not count."""
        return _fingerprint(self._content)

    @cached_property
    def _cache(self) -> WordCache | None:
        """Return a word cache if it is proven to be exact, else None."""
        normalizer = (self._content["normalizer"] or {}).get("type")
        splitter = self._content["pre_tokenizer"] or {}
        byte_level = (
            normalizer is None
            and splitter.get("type") == "ByteLevel"
            and splitter["use_regex"]
            and not splitter["add_prefix_space"]
        )
        bert = normalizer == "BertNormalizer" and splitter.get("type") == "BertPreTokenizer"
        added = self._content["added_tokens"]
        separator = [token for token in added if token["content"] == self._tokens["sep"]]
        plain = all(token["special"] and not token["normalized"] for token in added)
        if not ((self.kind == "bpe" and byte_level) or (self.kind == "wordpiece" and bert)):
            return None
        if not separator or not plain or separator[0]["lstrip"] or separator[0]["rstrip"]:
            return None
        return WordCache(
            self._backend,
            byte_level=byte_level,
            separator=self._tokens["sep"],
            specials=[token["content"] for token in added],
        )

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the token ids of all texts, concatenated, and how many each text has.

        Without special tokens.
        """
        if self._cache and texts and all(map(self._cache.covers, texts)):
            return self._cache.encode(texts)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        lengths = np.array([len(part) for part in ids], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.uint32), *ids]), lengths

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the token ids of each text, without special tokens."""
        flat, lengths = self.encode_flat(texts)
        return np.split(flat, np.cumsum(lengths)[:-1]) if texts else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return a text for people; WordPiece has lost case and spacing."""
        return str(self._backend.decode([int(i) for i in ids]))

    def save(self, directory: Path, *, model_max_length: int = 512) -> None:
        """Write the files for `transformers.AutoTokenizer.from_pretrained(directory)`.

        It gets BERT's or RoBERTa's class only if that gives the same ids; else the generic fast
        class.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(directory / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            **{f"{role}_token": token for role, token in self._tokens.items()},
        }
        if self.is_canonical:
            self._backend.model.save(str(directory))
            if self.kind == "wordpiece":
                config["tokenizer_class"] = "BertTokenizer"
                config["do_lower_case"] = bool(self._content["normalizer"]["lowercase"])
            else:
                config["tokenizer_class"] = "RobertaTokenizer"
                config["bos_token"], config["eos_token"] = self._tokens["cls"], self._tokens["sep"]
                config["add_prefix_space"] = False
        else:
            config["clean_up_tokenization_spaces"] = False
        write_json(directory / "tokenizer_config.json", config)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a folder, a `tokenizer.json`, a `vocab.txt`, or `vocab.json` with `merges.txt`.

        In a folder the first of these counts. Raises `DataError` if none is there or readable.
        """
        from tokenizers import Tokenizer as Backend

        folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise DataError(f"{path} does not exist; expected wordpiece, bpe or a tokenizer's path")
        names = {path.name} if path.is_file() else {p.name for p in folder.iterdir()}
        try:
            if "tokenizer.json" in names:
                return cls(Backend.from_file(str(folder / "tokenizer.json")))
            if "vocab.txt" in names:
                return cls(wordpiece(read_vocabulary(folder / "vocab.txt")))
            if names & {"vocab.json", "merges.txt"}:
                return cls(byte_level_bpe_from_files(folder))
            if path.is_file() and path.suffix == ".json":
                return cls(Backend.from_file(str(path)))
            if path.is_file() and path.suffix == ".txt":
                return cls(wordpiece(read_vocabulary(path)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"{path} cannot be read as a tokenizer ({error})") from error
        raise DataError(f"{path} has no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def file_fingerprint(path: Path) -> str | None:
    """Return `Tokenizer.fingerprint` of a saved `tokenizer.json`, without loading it.

    None if it is not JSON. The value does not depend on the release of `tokenizers`.
    """
    try:
        return _fingerprint(json.loads(path.read_bytes()))
    except ValueError:
        return None


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def train_tokenizer(kind: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Return a new tokenizer by a trainer of `TOKENIZERS`; the same texts give the same bytes.

    It is smaller than `vocab_size` if the texts have too few distinct words. Raises
    `ConfigError` where `vocab_size` leaves no room beside the alphabet.
    """
    backend = TOKENIZERS[kind](texts, vocab_size)
    if type(backend).__module__.partition(".")[0] != "tokenizers":
        raise ConfigError(
            f"the tokenizer {kind} returns {type(backend).__name__}; expected tokenizers.Tokenizer"
        )
    return Tokenizer(backend)


# ---- is a tokenizer that transformers loads the one that a corpus was prepared with?

HELD_OUT_NAME = "held_out.json"
"""Beside a corpus's tokenizer: a few held-out texts, for the export to compare ids on."""
NUM_HELD_OUT = 20

AWKWARD_TEXTS = (
    "The State of the ART; state-of-the-art, don't, 3.14, e.g. A.B.C.",
    "Café NAÏVE Zürich İstanbul ıİ ΣΊΣΥΦΟΣ ß ẞ ﬁ Å Å é e\u0301 ñ n\u0303",
    "東京は日本の首都。中华人民共和国 대한민국 한글 ภาษาไทย हिन्दी العربية עברית",
    "🙂 👩‍👩‍👧 🇩🇪 ✊🏽 ☃️ ½ № ™ “quoted” — … \u2028 end",
    "tab\tnewline\nreturn\rnul\x00bell\x07escape\x1b\x85\xa0\u200b\u200d\u3000\ufeffend",
    "  leading, double  and trailing spaces  ",
    " one leading space",
    "\n\nlines\n\n\nand lines\n",
    "▁lower one eighth block ▁▁ Ġ and Ċ are byte-level letters",
    "##ing ## # @user #tag http://example.org/a_b?c=d&e=%20 a@b.c C:\\dir snake_case camelCase",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "unbelievable" * 8,
    "unbelievable" * 60,
    "a" * 300 + " " + "é" * 150 + " " + "東" * 120,
    "0123456789 1,000,000.00 $5 50% 2²³ ¼ Ⅷ ١٢٣",
    "!?.,;:()[]{}<>/\\|@#$%^&*~`'\"_-+=",
    "\U0001d54f\U0001d550 \U00020000 \ue000 \u0378",
    "x",
    "",
)
"""What normalizers, pre-tokenizers and models are known to treat differently."""


def different_ids(tokenizer: Tokenizer, exported: Any, texts: Iterable[str]) -> str | None:
    """Describe the first text to which `exported`, of transformers, gives other ids; else None.

    Expected are the ids of `tokenizer` between [CLS] and [SEP]. A text that spells a special token
    is not compared: transformers reads it as one, and the corpus as text.
    """
    for text in texts:
        if any(token in text for token in tokenizer.special_tokens):
            continue
        [content] = tokenizer.encode_batch([text])
        expected = [tokenizer.cls_id, *content.tolist(), tokenizer.sep_id]
        actual = exported(text, truncation=False, padding=False, verbose=False)["input_ids"]
        if actual != expected:
            return (
                f"{type(exported).__name__} gives {_short(actual)} for {text[:40]!r}, the corpus "
                f"has {_short(expected)}"
            )
    return None


def _short(ids: list[int]) -> str:
    return f"{ids[:8]}{'…' if len(ids) > 8 else ''} ({len(ids)} ids)"
