"""What decides the content of a prepared corpus; the number of workers does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import check, option
from smallbench.errors import ConfigError
from smallbench.plugins import is_reference

TRAINED_KINDS = ("wordpiece", "bpe")

Separator = Literal["blank_line", "line", "file"]


def is_trained(tokenizer: str) -> bool:
    """Return whether `--tokenizer` names a kind to train, not an existing tokenizer."""
    return tokenizer in TRAINED_KINDS or is_reference(tokenizer)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How text is split into documents, and the text field of a row."""

    documents: Separator | None = option(
        None,
        help="separator of documents in plain text: a blank line, each line, or each file; "
        "none: blank lines in files, and each member of an archive is one",
    )
    text_field: str = option(
        "text", help="field or column of JSON, CSV, parquet and hub rows; a.b for nested ones"
    )
    encoding: str | None = option(
        None, help="encoding of text that is not UTF-8, such as cp1252; none: detected"
    )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(ReadOptions):
    """Equal configurations over equal sources give byte-identical directories."""

    corpus: str = option(
        help="a file, folder or glob of text, JSON lines, CSV, parquet or tar (each also gzip, "
        "bzip2, xz, zstd), hub:ORG/NAME[:CONFIG], or installed-docs",
        metavar="SOURCE",
    )
    tokenizer: str = option(
        "wordpiece",
        help="wordpiece or bpe trains one; or the path of a vocab.txt, of vocab.json with "
        "merges.txt, of a tokenizer.json, or of a Hugging Face directory; or FILE.py:NAME",
        metavar="wordpiece|bpe|PATH",
    )
    vocab_size: int = option(
        30_522, help="number of tokens of a trained tokenizer; the default is BERT's"
    )
    sequence_length: int = option(
        128, help="tokens in a row, [CLS] and [SEP] included (Hugging Face: max_seq_length)"
    )
    eval_fraction: float = option(0.005, help="share of documents held out, chosen by their hash")
    min_characters: int = option(200, help="characters of the shortest document that is kept")
    tokenizer_sample_bytes: int = option(
        100_000_000,
        help="bytes of text to train a tokenizer on: the documents with the smallest hashes",
    )
    max_documents: int | None = option(None, help="number of documents to read; none: all")

    def __post_init__(self) -> None:
        for name in ("corpus", "tokenizer", "text_field"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty; give a value, or leave the flag out")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise ConfigError(
                    f"encoding={self.encoding!r} is unknown; expected a name that Python knows, "
                    "such as cp1252, koi8-r or gb18030"
                ) from None
        check(self, "", sequence_length="[8, 65536]", eval_fraction="[0, 1)")
        check(self, "", vocab_size="[1, 16777216]", min_characters=">= 1")
        check(self, "", tokenizer_sample_bytes=">= 1", max_documents=">= 1")
