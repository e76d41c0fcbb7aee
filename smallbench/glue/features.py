"""From examples to batches: tokenised once, batched by length, padded to a batch's longest row.

Shapes: B rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from smallbench.batch import Batch
from smallbench.glue.task_data import Examples
from smallbench.glue.tokens import unknown_id

PAD_MULTIPLE = 8
"""Lengths are rounded up to a multiple of this: few, aligned shapes suit the kernels."""

MOST_UNKNOWN = 0.9
"""A text with a larger fraction of unknown tokens is refused: its rows are almost identical."""

BUCKET_BATCHES = 50
"""Rows are sorted by length within this many batches, so that an epoch stays well shuffled."""


@dataclass(frozen=True)
class Features:
    """Tokenised rows of one split, unpadded."""

    input_ids: Sequence[Sequence[int]]
    token_type_ids: Sequence[Sequence[int]] | None
    labels: np.ndarray[Any, Any] | None
    pad_id: int
    pad_left: bool
    max_length: int
    unknown_share: float = 0.0
    """Fraction of the tokens that the tokenizer does not know; 1 for texts without tokens."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> Features:
        """Return the given rows, in the given order."""
        types = self.token_type_ids
        return replace(
            self,
            input_ids=[self.input_ids[row] for row in rows],
            token_type_ids=None if types is None else [types[row] for row in rows],
            labels=None if self.labels is None else self.labels[np.asarray(rows)],
        )

    def lengths(self) -> np.ndarray[Any, Any]:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the given rows as a batch, padded on the tokenizer's side."""
        longest = max(len(self.input_ids[row]) for row in rows)
        # Never pad beyond max_length: the encoder may have no more positions.
        longest = max(longest, min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.max_length))
        ids_BL = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        types_BL = np.zeros_like(ids_BL)
        mask_BL = np.zeros(ids_BL.shape, dtype=bool)
        for i, row in enumerate(rows):
            length = len(self.input_ids[row])
            span = slice(longest - length, None) if self.pad_left else slice(length)
            ids_BL[i, span] = self.input_ids[row]
            mask_BL[i, span] = True
            if self.token_type_ids is not None:
                types_BL[i, span] = self.token_type_ids[row]
        return Batch(
            input_ids=torch.from_numpy(ids_BL),
            attention_mask=torch.from_numpy(mask_BL),
            token_type_ids=None if self.token_type_ids is None else torch.from_numpy(types_BL),
            labels=None if self.labels is None else torch.from_numpy(self.labels[list(rows)]),
        )

    def by_length(self, batch_size: int) -> list[list[int]]:
        """Return all rows in batches of similar length, for evaluation."""
        order = np.argsort(self.lengths(), kind="stable")
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def tokenize(examples: Examples, tokenizer: Any, *, max_length: int, with_types: bool) -> Features:
    """Tokenise a split with a Hugging Face tokenizer, which adds its special tokens."""
    second = None if examples.second is None else list(examples.second)
    encoded = tokenizer(
        list(examples.first),
        second,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=with_types,
    )
    input_ids = encoded["input_ids"]
    num_added = tokenizer.num_special_tokens_to_add(pair=second is not None)
    texts = zip(examples.first, second or [""] * len(examples), strict=True)
    num_tokens = [max(0, len(ids) - num_added) for ids in input_ids]
    # Some tokenizers drop what they do not know: a word without a token is an unknown one.
    num_dropped = sum(
        max(0, sum(len(text.split()) for text in pair) - tokens)
        for tokens, ids, pair in zip(num_tokens, input_ids, texts, strict=True)
        if len(ids) < max_length
    )
    unknown, total = unknown_id(tokenizer), sum(num_tokens) + num_dropped
    num_unknown = sum(ids.count(unknown) for ids in input_ids) + num_dropped
    return Features(
        input_ids=input_ids,
        token_type_ids=encoded["token_type_ids"] if with_types else None,
        labels=examples.labels,
        pad_id=tokenizer.pad_token_id,
        pad_left=tokenizer.padding_side == "left",
        max_length=max_length,
        unknown_share=num_unknown / total if total else 1.0,
    )


def epoch_batches(
    lengths: np.ndarray[Any, Any], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return one epoch's rows in random batches of similar length; a function of seed and epoch.

    Every row occurs once. Rows are shuffled, sorted by length within `BUCKET_BATCHES` batches, and
    the batches are shuffled again.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths))
    bucket = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size].tolist() for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class EpochBatches:
    """The batch source of fine-tuning: position i is step i; `num_steps` steps are all epochs."""

    def __init__(self, features: Features, *, batch_size: int, epochs: int, seed: int) -> None:
        self._features = features
        batches = partial(epoch_batches, features.lengths(), batch_size=batch_size, seed=seed)
        self._batches = lru_cache(maxsize=1)(batches)
        self.steps_per_epoch = -(-len(features) // batch_size)
        self.num_steps = epochs * self.steps_per_epoch

    def read(self, position: int, fraction: float = 0.0) -> tuple[list[Batch], int]:
        """Return the one batch of step `position`."""
        epoch, index = divmod(position, self.steps_per_epoch)
        return [self._features.batch(self._batches(epoch=epoch)[index])], position + 1
