"""A chunk of raw documents → rows of token ids: the part of `prepare` that runs in workers.

Pure: what comes out for a document depends on that document alone. Shapes: B rows, L tokens a row,
D documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from smallbench.data.cleaning import CleanText, clean, is_held_out, text_hash
from smallbench.data.parity import NUM_HELD_OUT
from smallbench.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextRules:
    """Which texts are kept, and which of them are held out."""

    min_characters: int
    eval_fraction: float
    extract: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True)
class PackedChunk:
    """What became of one chunk: counts, and for its documents that are long enough, in order.

    `rows` [B, L] are those of all these documents; the other arrays are [D], and document d has
    `num_rows[d]` rows. `held_out` has the beginnings of the first texts that are held out.
    """

    counts: Counter[str]
    hashes: NDArray[np.uint64]
    num_text_bytes: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    rows: NDArray[np.unsignedinteger]
    held_out: list[str] = field(default_factory=list)


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Little-endian 16 bits if every id fits."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def pack_chunk(
    documents: Sequence[bytes], *, rules: TextRules, tokenizer: Tokenizer, sequence_length: int
) -> PackedChunk:
    """Clean, hash, tokenise and pack; documents that are too short only count."""
    counts: Counter[str] = Counter(documents=len(documents), raw_bytes=sum(map(len, documents)))
    texts = []
    for result in clean_documents(documents, rules):
        counts["decode_errors"] += result.decode_errors
        counts["control_characters"] += result.control_characters
        counts[f"characters:{length_bucket(len(result.text))}"] += 1
        if len(result.text) >= rules.min_characters:
            texts.append(result.text)
        else:
            counts["too_short"] += 1
    flat, num_tokens_D = tokenizer.encode_flat(texts)
    # A clean text has one space or newline between words.
    counts["words"] += sum(text.count(" ") + text.count("\n") + 1 for text in texts)
    counts["encoded_tokens"] += len(flat)
    counts["unknown_tokens"] += int(np.count_nonzero(flat == tokenizer.unk_id))
    counts["no_tokens"] += int(np.count_nonzero(num_tokens_D == 0))
    hashes = [text_hash(text) for text in texts]
    held_out = (
        t for t, h in zip(texts, hashes, strict=True) if is_held_out(h, rules.eval_fraction)
    )
    rows_BL, num_rows_D = pack_rows(
        flat.astype(token_dtype(tokenizer.vocab_size)),
        num_tokens_D,
        sequence_length=sequence_length,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
    )
    return PackedChunk(
        counts=counts,
        hashes=np.array(hashes, dtype=np.uint64),
        num_text_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int64),
        num_tokens=num_tokens_D,
        num_rows=num_rows_D,
        rows=rows_BL,
        held_out=list(islice(held_out, NUM_HELD_OUT)),
    )


def length_bucket(num_characters: int) -> int:
    """Round down to two digits, so that the lengths of any corpus have few different values."""
    unit: int = 10 ** max(0, len(str(num_characters)) - 2)
    return num_characters // unit * unit


def clean_documents(documents: Iterable[bytes], rules: TextRules) -> Iterable[CleanText]:
    """Raw documents → clean texts, one at a time."""
    return map(clean, map(rules.extract, documents) if rules.extract else documents)


def pack_rows(
    flat: NDArray[np.unsignedinteger],
    num_tokens_D: NDArray[np.int64],
    *,
    sequence_length: int,
    cls_id: int,
    sep_id: int,
    pad_id: int,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Tokens of D documents in a row → rows_BL of [CLS] content [SEP], and rows of each document.

    No row holds two documents. The last row of a document reaches back so that it is full; a
    document shorter than a row is padded after its [SEP]. A document without tokens has no row.
    """
    capacity = sequence_length - 2
    num_rows_D = -(-num_tokens_D // capacity)
    begin_D = np.cumsum(num_tokens_D) - num_tokens_D
    document_B = np.repeat(np.arange(len(num_tokens_D)), num_rows_D)
    row_in_document_B = (
        np.arange(len(document_B)) - (np.cumsum(num_rows_D) - num_rows_D)[document_B]
    )
    last_start_D = np.maximum(num_tokens_D - capacity, 0)
    start_B = begin_D[document_B] + np.minimum(
        row_in_document_B * capacity, last_start_D[document_B]
    )
    length_B = np.minimum(num_tokens_D[document_B], capacity)
    rows_BL = np.full((len(document_B), sequence_length), pad_id, dtype=flat.dtype)
    rows_BL[:, 0] = cls_id
    if len(flat):
        # Indices of a short row exceed its document; the padding overwrites those values.
        column = np.arange(capacity)
        content = flat[np.minimum(start_B[:, None] + column, len(flat) - 1)]
        rows_BL[:, 1:-1] = np.where(column < length_B[:, None], content, pad_id)
    rows_BL[np.arange(len(rows_BL)), length_B + 1] = sep_id
    return rows_BL, num_rows_D
