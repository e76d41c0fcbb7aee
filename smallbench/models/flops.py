"""Floating-point operations of a forward pass: by formula, or counted by PyTorch.

Both count matrix products only, 2 per multiply-add, for the model without recomputation and
padding, and with only the chosen positions in the head. The formula needs no torch: the leaderboard
counts an entry's operations with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbench.models.config import EncoderConfig
    from smallbench.models.encoder import Encoder, Head

SCORE_TERMS = {"bert": 1, "electra": 1, "roberta": 1, "deberta": 3, "roformer": 1}
"""Architecture → products of L × L × D that make an attention score; DeBERTa has two more."""


def transformer_flops(
    config: EncoderConfig,
    head: Head,
    *,
    num_rows: int,
    length: int,
    num_targets: int,
    architecture: str,
) -> int:
    """Return the operations of a transformer encoder with one of this project's heads.

    `architecture` is a key of `SCORE_TERMS`.
    """
    c = config
    attention = 4 * c.hidden_size**2 + (1 + SCORE_TERMS[architecture]) * length * c.hidden_size
    layer = attention + 2 * c.hidden_size * c.intermediate_size
    factorised = c.embedding_size != c.hidden_size
    per_token = c.num_hidden_layers * layer
    per_token += c.embedding_size * c.hidden_size if factorised else 0
    per_target = {
        "tokens": c.hidden_size * c.embedding_size + c.embedding_size * c.num_embedding_rows,
        "replaced": c.hidden_size**2 + c.hidden_size,
        "none": 0,
    }[head]
    return 2 * (num_rows * length * per_token + num_targets * per_target)


@cache
def counted_flops(
    architecture: Callable[..., Encoder], config: EncoderConfig, head: Head, length: int
) -> tuple[int, int]:
    """Return the operations of a row and of a target, as PyTorch counts them in a forward pass.

    The model runs on fake tensors, without data; on real ones if its computation depends on data.
    """
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )

    try:
        return _count(architecture, config, head, length, FakeTensorMode())
    except (DataDependentOutputException, DynamicOutputShapeException):
        return _count(architecture, config, head, length, nullcontext())


def _count(
    architecture: Callable[..., Encoder],
    config: EncoderConfig,
    head: Head,
    length: int,
    tensors: AbstractContextManager[Any],
) -> tuple[int, int]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from smallbench.batch import Batch

    with torch.random.fork_rng(devices=[]), tensors, torch.no_grad():
        # The counter looks for gradient functions of what requires a gradient.
        model = architecture(config, head=head).eval().requires_grad_(False)
        batch = Batch(input_ids=torch.zeros(1, length, dtype=torch.int64))
        with FlopCounterMode(display=False) as body:
            hidden_BLD = model(batch)
        with FlopCounterMode(display=False) as scores:
            if head == "tokens":
                features_ME, weight_VE, _ = model.token_scorer(hidden_BLD[0, :1])
                features_ME @ weight_VE.T
            elif head == "replaced":
                model.predict_replaced(hidden_BLD[:, :1])
    return body.get_total_flops(), scores.get_total_flops()
