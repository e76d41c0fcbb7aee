"""A prepared corpus in a few lines: documents that were kept, and warnings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from smallbench.data.shards import Manifest
from smallbench.data.skips import printable
from smallbench.templates import from_template

PAPER_VOCABULARIES = {"wordpiece": ("bert", 30_522), "bpe": ("roberta", 50_265)}
"""Kind of tokenizer → family of recipes, and the size of its public vocabulary."""

_MAX_UNKNOWN, _POINTLESS_UNKNOWN = 0.01, 0.2
_MAX_TOKENS_A_WORD = 4.0  # English has 1.2 to 1.5 with a vocabulary of its own
_MIN_HELD_OUT_ROWS, _MIN_TRAIN_ROWS = 100, 1000
_MIN_MEDIAN_CHARACTERS = 50
_MAX_PADDING = 0.5
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


def corpus_warnings(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each figure that makes training pointless or doubtful."""
    c, rows = manifest.counts, manifest.rows
    if "words" in c:
        yield from _text_warnings(c)
    positions = (manifest.sequence_length - 2) * (rows["train"] + rows["eval"])
    if c["padding_tokens"] > _MAX_PADDING * positions:
        yield (
            f"{c['padding_tokens'] / positions:.0%} of the positions are padding, since documents "
            f"are shorter than a row; use a smaller --sequence_length, or longer documents"
        )
    if rows["train"] < _MIN_TRAIN_ROWS:
        yield (
            f"only {rows['train']:,} training rows: enough to try the commands, not to train a "
            "model"
        )
    if not rows["eval"]:
        yield "no held-out rows: prepare a larger corpus, or with a larger --eval_fraction"
    elif rows["eval"] < _MIN_HELD_OUT_ROWS:
        yield (
            f"only {rows['eval']:,} held-out rows: the held-out loss will be mostly chance; "
            "prepare a larger corpus, or with a larger --eval_fraction"
        )
    if rows["eval"] and manifest.eval_unigram_entropy_nats is None:
        yield "the held-out rows have no known token, so their entropy is not defined"


def _text_warnings(c: Mapping[str, int]) -> Iterator[str]:
    unknown, tokens_a_word = _unknown_share(c), _tokens_a_word(c)
    if unknown > _MAX_UNKNOWN:
        effect = "training is pointless" if unknown > _POINTLESS_UNKNOWN else "much text is lost"
        yield (
            f"{unknown:.1%} of the tokens are unknown ([UNK]), so {effect}: the vocabulary does "
            "not know these words; use --tokenizer=bpe, or a tokenizer of this language and script"
        )
    if tokens_a_word > _MAX_TOKENS_A_WORD:
        yield (
            f"{tokens_a_word:.1f} tokens a word: the text has few spaces, or the tokenizer does "
            "not fit its language; train one on it, or use a larger --vocab_size"
        )
    if c["words"] and tokens_a_word < 0.5:
        yield (
            f"{tokens_a_word:.2f} tokens a word: the tokenizer drops text that it does not know; "
            "use one with an unknown token or with bytes"
        )
    if c["no_tokens"]:
        yield f"{c['no_tokens']:,} documents have no token at all and are lost"
    if c["documents"] >= _MIN_TRAIN_ROWS and c["median_characters"] < _MIN_MEDIAN_CHARACTERS:
        yield (
            f"half of the documents have at most {c['median_characters']} characters: these look "
            "like lines or words, not documents; see --documents"
        )
    if c["documents"] and c["too_short"] > c["documents"] / 2:
        yield (
            f"{c['too_short'] / c['documents']:.0%} of the documents are too short and dropped; "
            "use a smaller --min_characters, or see --documents"
        )
