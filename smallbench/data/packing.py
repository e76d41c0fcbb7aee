"""A chunk of raw documents → texts to train a tokenizer on, or rows of token ids, in workers.

Pure: what comes out for a document depends on that document alone. Shapes: B rows, L tokens a row,
D documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallbench.data.cleaning import clean, is_held_out, text_hash
from smallbench.data.config import PrepareConfig
from smallbench.data.tokenizer import NUM_HELD_OUT, Tokenizer

Extract = Callable[[bytes], bytes]
"""Turns a raw document into text."""

load_tokenizer = lru_cache(maxsize=1)(Tokenizer.load)
"""Return the one tokenizer of this process, with the words that it has cached."""


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


def sample_chunk(
    task: tuple[Sequence[bytes], int], *, config: PrepareConfig, extract: Extract | None
) -> tuple[int, int, list[tuple[int, bytes]]]:
    """Return the numbers of documents and bytes, and (hash, clean text) of possible samples.

    The task is the documents and the bound of the hashes that may be in the sample, which never has
    held-out documents.
    """
    documents, bound = task
    sample = []
    for text, *_ in map(clean, map(extract, documents) if extract else documents):
        if len(text) >= config.min_characters:
            hash_value = text_hash(text)
            if hash_value < bound and not is_held_out(hash_value, config.eval_fraction):
                sample.append((hash_value, text.encode()))
    return len(documents), sum(map(len, documents)), sample


def pack_chunk(
    documents: Sequence[bytes], *, config: PrepareConfig, extract: Extract | None, folder: Path
) -> PackedChunk:
    """Clean, hash, pack and tokenise with the tokenizer in `folder`; short documents only count."""
    tokenizer = load_tokenizer(folder)
    counts: Counter[str] = Counter(documents=len(documents), raw_bytes=sum(map(len, documents)))
    texts = []
    for result in map(clean, map(extract, documents) if extract else documents):
        counts["decode_errors"] += result.decode_errors
        counts["control_characters"] += result.control_characters
        if len(result.text) >= config.min_characters:
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
        t for t, h in zip(texts, hashes, strict=True) if is_held_out(h, config.eval_fraction)
    )
    rows_BL, num_rows_D = pack_rows(
        flat.astype(token_dtype(tokenizer.vocab_size)),
        num_tokens_D,
        sequence_length=config.sequence_length,
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
