"""Backends of the package `tokenizers`, as BERT's or RoBERTa's: from a vocabulary, or trained."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallbench.errors import ConfigError, DataError

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # and <mask> last, as in RoBERTa
MAX_ALPHABET = 1000  # distinct characters; BERT's uncased vocabulary has about as many


def read_vocabulary(path: Path) -> list[str]:
    """Return the tokens of a `vocab.txt`, one a line.

    Raises `DataError` with the line numbers if a token occurs twice: one id would be lost.
    """
    tokens = [line.rstrip("\r") for line in path.read_text("utf-8-sig").split("\n")]
    while tokens and not tokens[-1]:
        tokens.pop()
    first: dict[str, int] = {}
    twice = []
    for number, token in enumerate(tokens, start=1):
        if first.setdefault(token, number) != number:
            twice.append(f"{token!r} in lines {first[token]} and {number}")
    if twice:
        more = f", and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise DataError(
            f"a token occurs in several lines: {', '.join(twice[:3])}{more}; each line is an "
            "id, so remove or rename the repeated ones"
        )
    return tokens


def wordpiece(tokens: Sequence[str]) -> Any:
    """Return BERT's tokenizer over a vocabulary; cased if the vocabulary has capital letters."""
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
    surround_like_bert(backend, "[CLS]", "[SEP]")
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def surround_like_bert(backend: Any, cls: str, sep: str) -> None:
    """Make `backend` add its special tokens as in `cls A sep` and `cls A sep B sep`."""
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )


def _split_like_bert(backend: Any, *, lowercase: bool) -> None:
    from tokenizers import normalizers, pre_tokenizers

    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Any:
    """Train an uncased WordPiece backend; raises `ConfigError` if `vocab_size` is too small."""
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
    """Return the most frequent characters, sorted, and those of them that can continue a word."""
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


def byte_level_bpe(model: Any) -> Any:
    """Return a backend that pre-tokenises like GPT-2 and RoBERTa."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def finish_like_roberta(backend: Any) -> Any:
    """Add RoBERTa's special tokens, and put them around texts."""
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


def byte_level_bpe_from_files(folder: Path) -> Any:
    """Read `vocab.json` and `merges.txt`; raises `DataError` if one is missing."""
    from tokenizers import models

    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise DataError(f"vocab.json and merges.txt belong together; {name} is missing")
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return finish_like_roberta(byte_level_bpe(model))


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE backend; raises `ConfigError` if `vocab_size` is too small."""
    from tokenizers import models, pre_tokenizers, trainers

    backend = byte_level_bpe(models.BPE())
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
    return finish_like_roberta(backend)
