"""A prepared corpus in a few lines: documents that were kept, and warnings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from smallbench.data.shards import Manifest
from smallbench.data.skips import printable
from smallbench.templates import from_template

PAPER_VOCABULARIES = {"wordpiece": ("bert", 30_522), "bpe": ("roberta", 50_265)}
"""Kind of tokenizer → family of recipes, and the size of its public vocabulary."""

_NUM_SHOWN = 5


def median_length(counts: Mapping[str, int]) -> int:
    """Return the median of the `characters:N` counts, to two digits; 0 without any."""
    lengths = sorted(
        (int(key.partition(":")[2]), count)
        for key, count in counts.items()
        if key.startswith("characters:")
    )
    half, seen = sum(count for _, count in lengths) / 2, 0
    for length, count in lengths:
        seen += count
        if seen >= half:
            return length
    return 0


def corpus_summary(manifest: Manifest, out: Path | str) -> str:
    """Return a few lines: kept and dropped documents, warnings, and the next command."""
    # The paper's recipes want the paper's vocabularies; the tiny ones take any.
    family, size = PAPER_VOCABULARIES.get(manifest.tokenizer.kind, ("bert", 0))
    return from_template(
        "smallbench.data",
        "summary.txt",
        m=manifest,
        c=manifest.counts,
        tokens_a_word=_tokens_a_word,
        unknown_share=_unknown_share,
        warnings=corpus_warnings(manifest),
        recipe=f"{family}-{'small' if manifest.tokenizer.vocab_size == size else 'tiny'}",
        data=shlex.quote(printable(out)),
        shown=_NUM_SHOWN,
    ).rstrip()


def _unknown_share(c: Mapping[str, int]) -> float:
    return c["unknown_tokens"] / max(1, c["encoded_tokens"])


def _tokens_a_word(c: Mapping[str, int]) -> float:
    return c["encoded_tokens"] / max(1, c["words"])


def corpus_warnings(manifest: Manifest) -> list[str]:
    """Return a sentence for each figure that makes training pointless or doubtful."""
    c, rows = manifest.counts, manifest.rows
    has_words = "words" in c
    return from_template(
        "smallbench.data",
        "warnings.txt",
        c=c,
        rows=rows,
        unknown=_unknown_share(c) if has_words else None,
        tokens_a_word=_tokens_a_word(c) if has_words else None,
        positions=(manifest.sequence_length - 2) * (rows["train"] + rows["eval"]),
        has_no_entropy=manifest.eval_unigram_entropy_nats is None,
    ).splitlines()
