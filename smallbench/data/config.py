"""What decides the content of a prepared corpus; the number of workers does not."""

from __future__ import annotations

from dataclasses import dataclass

from smallbench.config import option
from smallbench.errors import ConfigError
from smallbench.plugins import is_reference

TRAINED_KINDS = ("wordpiece", "bpe")


def is_trained(tokenizer: str) -> bool:
    """Whether `--tokenizer` names what trains one, not one that is there."""
    return tokenizer in TRAINED_KINDS or is_reference(tokenizer)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Equal configurations over equal sources give byte-identical directories."""

    corpus: str = option(
        help="a file, folder or glob of .txt, .jsonl, .parquet (each also .gz, .xz, .zst), "
        "openwebtext.tar.xz, hub:ORG/NAME, or installed-docs",
        metavar="SOURCE",
    )
    tokenizer: str = option(
        "wordpiece",
        help="wordpiece or bpe trains one; or the path of a vocab.txt, of vocab.json with "
        "merges.txt, of a tokenizer.json, or of a Hugging Face directory; or FILE.py:NAME",
        metavar="wordpiece|bpe|PATH",
    )
    vocab_size: int = option(30_522, help="of a trained tokenizer; the default is BERT's")
    sequence_length: int = option(128, help="tokens in a row, [CLS] and [SEP] included")
    eval_fraction: float = option(0.005, help="share of documents held out, chosen by their hash")
    min_characters: int = option(200, help="documents with fewer are dropped")
    tokenizer_sample_bytes: int = option(
        100_000_000, help="text to train a tokenizer on: the documents with the smallest hashes"
    )
    max_documents: int | None = option(None, help="read no more than the first so many documents")

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise ConfigError(f"sequence_length={self.sequence_length} is too short; use 8 or more")
        if not 0 <= self.eval_fraction < 1:
            raise ConfigError(f"eval_fraction={self.eval_fraction} is not in [0, 1)")
        for name in ("vocab_size", "min_characters", "tokenizer_sample_bytes", "max_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
