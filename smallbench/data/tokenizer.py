"""The tokenizer: trained on a sample or loaded, applied, saved in Hugging Face's layout.

WordPiece follows BERT uncased and byte-level BPE follows RoBERTa, so that what is saved loads as
`AutoTokenizer` with equal ids.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbench.data import TOKENIZERS
from smallbench.data.word_cache import WordCache
from smallbench.errors import ConfigError, DataError
from smallbench.files import write_json

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # and <mask> last, as in RoBERTa
MAX_ALPHABET = 1000  # distinct characters; BERT's uncased vocabulary has about as many

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

    `kind` is "wordpiece" or "bpe"; `vocab_size` is the largest id plus one. Raises `DataError`
    for another kind or a missing special token.
    """

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._content: dict[str, Any] = json.loads(backend.to_str())
        model = self._content["model"]["type"]
        if model not in {"WordPiece", "BPE"}:
            raise DataError(f"tokenizer model {model} is not supported; use WordPiece or BPE")
        self.kind = model.lower()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._tokens: dict[str, str] = {}
        for role, names in _ROLES.items():
            known = [name for name in names if name in vocabulary]
            if not known:
                raise DataError(f"the tokenizer has no {' or '.join(names)} token")
            self._tokens[role] = known[0]
        self.pad_id = int(vocabulary[self._tokens["pad"]])
        self.unk_id = int(vocabulary[self._tokens["unk"]])
        self.cls_id = int(vocabulary[self._tokens["cls"]])
        self.sep_id = int(vocabulary[self._tokens["sep"]])
        self.mask_id = int(vocabulary[self._tokens["mask"]])
        added = {token["id"] for token in self._content["added_tokens"] if token["special"]}
        roles = {self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id}
        self.special_ids = tuple(sorted(added | roles))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids; the layout of the file does not count."""
        return _fingerprint(self._content)

    @cached_property
    def _cache(self) -> WordCache | None:
        """A word cache where its exactness is proven, else None."""
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
        """Ids of all texts in a row, without special tokens, and the number of each text's."""
        if self._cache and texts and all(map(self._cache.covers, texts)):
            return self._cache.encode(texts)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        lengths = np.array([len(part) for part in ids], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.uint32), *ids]), lengths

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each text, without special tokens."""
        flat, lengths = self.encode_flat(texts)
        return np.split(flat, np.cumsum(lengths)[:-1]) if texts else []

    def decode(self, ids: Sequence[int]) -> str:
        """A text for people; WordPiece has lost case and spacing."""
        return str(self._backend.decode([int(i) for i in ids]))

    def save(self, directory: Path, *, model_max_length: int = 512) -> None:
        """Write what `transformers.AutoTokenizer.from_pretrained(directory)` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(directory / "tokenizer.json"))
        self._backend.model.save(str(directory))
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer" if self.kind == "wordpiece" else "RobertaTokenizer",
            "model_max_length": model_max_length,
            **{f"{role}_token": token for role, token in self._tokens.items()},
        }
        if self.kind == "wordpiece":
            config["do_lower_case"] = bool((self._content["normalizer"] or {}).get("lowercase"))
        else:
            config["bos_token"], config["eos_token"] = self._tokens["cls"], self._tokens["sep"]
            config["add_prefix_space"] = False
        write_json(directory / "tokenizer_config.json", config)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a folder, a `tokenizer.json`, a `vocab.txt`, or `vocab.json` with `merges.txt`.

        In a folder the first of these counts. Raises `DataError` where none is there or readable.
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
                lines = (folder / "vocab.txt").read_text("utf-8").rstrip("\n").split("\n")
                return cls(wordpiece([line.rstrip("\r") for line in lines]))
            if names & {"vocab.json", "merges.txt"}:
                return cls(_byte_level_bpe_from_files(folder))
            if path.is_file() and path.suffix == ".json":
                return cls(Backend.from_file(str(path)))
            if path.is_file() and path.suffix == ".txt":
                return cls(wordpiece(path.read_text("utf-8").rstrip("\n").split("\n")))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"{path} is no readable tokenizer ({error})") from error
        raise DataError(f"{path} holds no tokenizer.json, vocab.txt or vocab.json with merges.txt")


def file_fingerprint(path: Path) -> str | None:
    """`Tokenizer.fingerprint` of a saved `tokenizer.json`, without loading it; None for no JSON.

    It holds whatever release of `tokenizers` reads the file, and may write it in other words.
    """
    try:
        return _fingerprint(json.loads(path.read_bytes()))
    except ValueError:
        return None


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def train_tokenizer(kind: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A new tokenizer by a trainer of `TOKENIZERS`; the same texts give the same bytes.

    It is smaller than `vocab_size` where the texts have too few distinct words. Raises
    `ConfigError` where `vocab_size` leaves no room beside the alphabet.
    """
    backend = TOKENIZERS[kind](texts, vocab_size)
    if type(backend).__module__.partition(".")[0] != "tokenizers":
        raise ConfigError(
            f"the tokenizer {kind} returns {type(backend).__name__}; expected tokenizers.Tokenizer"
        )
    return Tokenizer(backend)


def wordpiece(tokens: Sequence[str]) -> Any:
    """BERT's tokenizer over a vocabulary; cased where the vocabulary has capital letters."""
    import tokenizers
    from tokenizers import decoders, models

    vocabulary = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in WORDPIECE_SPECIALS if token not in vocabulary]
    if missing:
        raise DataError(f"the vocabulary has no {', '.join(missing)}")
    cased = any(token in vocabulary for token in string.ascii_uppercase)
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    _split_like_bert(backend, lowercase=not cased)
    backend.add_special_tokens(list(WORDPIECE_SPECIALS))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _split_like_bert(backend: Any, *, lowercase: bool) -> None:
    from tokenizers import normalizers, pre_tokenizers

    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` like BERT's uncased one."""
    import tokenizers
    from tokenizers import models, trainers

    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    _split_like_bert(backend, lowercase=True)
    first, following = _alphabet(backend, texts)
    # The trainer numbers "##" letters in the order of a randomly seeded hash table, and ties
    # between merges fall by number, so each process would train another vocabulary. Given as
    # "special", the letters have their numbers beforehand; no other alphabet is allowed.
    letters = [*WORDPIECE_SPECIALS, *first, *(f"##{letter}" for letter in following)]
    if vocab_size <= len(letters):
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: special tokens and letters "
            f"alone are {len(letters)}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=letters, limit_alphabet=0, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab()
    return wordpiece(sorted(vocabulary, key=vocabulary.__getitem__))


def _alphabet(backend: Any, texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """The most frequent characters, sorted, and those of them that can continue a word."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        points = np.frombuffer(normal.encode("utf-32-le", "replace"), dtype=np.uint32)
        found = np.bincount(points)
        counts[: len(found)] += found
    counts[[ord(" "), ord("\n"), ord("\t")]] = 0
    frequent = np.argsort(-counts, kind="stable")[:MAX_ALPHABET]
    split = backend.pre_tokenizer.pre_tokenize_str
    letters = [chr(c) for c in sorted(frequent) if counts[c] and not chr(c).isspace()]
    following = [letter for letter in letters if len(split(f"a{letter}")) == 1]
    return letters, following


def _byte_level_bpe(model: Any) -> Any:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _finish_like_roberta(backend: Any) -> Any:
    from tokenizers import AddedToken, processors

    # Last id; takes the space before it, so that "a <mask>" is "a" and a word to guess.
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    backend.add_special_tokens([*BPE_SPECIALS, mask])
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", backend.token_to_id("</s>")),
        ("<s>", backend.token_to_id("<s>")),
        add_prefix_space=False,
    )
    return backend


def _byte_level_bpe_from_files(folder: Path) -> Any:
    from tokenizers import models

    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise DataError(f"vocab.json and merges.txt belong together; {name} is missing")
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return _finish_like_roberta(_byte_level_bpe(model))


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` like RoBERTa's."""
    from tokenizers import models, pre_tokenizers, trainers

    backend = _byte_level_bpe(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(BPE_SPECIALS) + 1
    if vocab_size <= smallest:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: special tokens and bytes alone are {smallest}"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes last
        min_frequency=2,
        special_tokens=list(BPE_SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # The trained model alone: specials are added again, with <mask>, in RoBERTa's order.
    return _finish_like_roberta(backend)
