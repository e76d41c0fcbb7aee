"""Classifiers to fine-tune: our own encoder if it has the architecture, else transformers' model.

Weights and head are always those of transformers' `…ForSequenceClassification`, so the score does
not depend on the implementation; ours is much faster. With a pooling, the head is ours. Shapes: B
rows, L positions, D hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.errors import ConfigError
from smallbench.glue import POOLINGS
from smallbench.models import ARCHITECTURES
from smallbench.models.convert import body_of

HEADS: Mapping[str, Callable[[Any], nn.Module]] = {
    "bert": lambda theirs: nn.Sequential(theirs.bert.pooler, theirs.dropout, theirs.classifier),
    "deberta": lambda theirs: nn.Sequential(theirs.pooler, theirs.dropout, theirs.classifier),
    "electra": lambda theirs: theirs.classifier,
    "roberta": lambda theirs: theirs.classifier,
    "roformer": lambda theirs: theirs.classifier,
}
"""Architecture as transformers names it → its head, from hidden_BLD to logits_BC."""


def build_classifier(theirs: Any, *, pads_left: bool, pooling: str | None = None) -> nn.Module:
    """Return a module from a `Batch` to logits_BC with the weights of transformers' model `theirs`.

    With `pooling`, the head is ours (`Pooled`). Left-padded rows need transformers' model: our
    positions count from the start of a row.
    """
    encoder = None if pads_left else our_encoder(theirs)
    if pooling is None:
        head = HEADS.get(theirs.config.model_type)
        return Foreign(theirs) if encoder is None or head is None else Native(encoder, head(theirs))
    if theirs.config.is_encoder_decoder:
        raise ConfigError(
            f"--pooling={pooling!r} needs an encoder, but the model is a "
            f"{type(theirs).__name__}; omit it"
        )
    config = theirs.config
    if encoder is None and config.model_type == OWN_MODEL_TYPE:
        encoder = theirs.base_model  # the export of an architecture that transformers does not have
    body = Foreign(theirs.base_model) if encoder is None else encoder
    return Pooled(body, POOLINGS[pooling], config)


OWN_MODEL_TYPE = "smallbench"
"""The `model_type` of exports that carry their code; its encoder takes a `Batch`, like ours."""

HEAD_DROPOUT, INITIALIZER_RANGE = 0.1, 0.02
"""BERT's (Devlin et al. 2019), for encoders whose configuration does not set it."""


def our_encoder(theirs: Any) -> nn.Module | None:
    """Return our encoder with the weights of transformers' model, or None if we do not have it."""
    body = body_of(theirs.config.to_dict())
    if body is None:
        return None
    config, target = body
    weights = theirs.state_dict()
    for name, compute in target.constants.items():
        if not torch.allclose(weights[name], compute(), atol=1e-4):
            return None  # a table of positions that ours does not have
    encoder: nn.Module = ARCHITECTURES[config.architecture](config, head="none")
    encoder.load_state_dict(target.unpack(weights))
    return encoder


class Native(nn.Module):
    """Our encoder under transformers' head."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, batch: Batch) -> Tensor:
        """Batch → logits_BC."""
        logits_BC: Tensor = self.head(self.encoder(batch))
        return logits_BC


class Foreign(nn.Module):
    """Any transformers model; a bare one returns its hidden states."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs
        # DeBERTa masks padding with float32's lowest number, which overflows in fp16 and bf16.
        self.needs_float32 = theirs.config.model_type == "deberta"

    def forward(self, batch: Batch) -> Tensor:
        """Batch → logits_BC, or hidden_BLD."""
        inputs = {"input_ids": batch.input_ids}
        # some compute with the type ids, so they are 0 and 1 as the tokenizer gives them
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask.long()
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        device = batch.input_ids.device.type
        is_autocast = torch.is_autocast_enabled(device) and not self.needs_float32
        with torch.autocast(device, enabled=is_autocast):
            output: Tensor = self.theirs(**inputs)[0]
        return output


def first(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the hidden state of the first token, [CLS] in BERT; rows may be left-padded."""
    rows = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
    return hidden_BLD[rows, mask_BL.int().argmax(dim=1)]


def mean(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean over all tokens except padding."""
    weights_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
    return (hidden_BLD * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1)


def largest(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the maximum of each dimension over all tokens except padding."""
    lowest = torch.finfo(hidden_BLD.dtype).min
    return hidden_BLD.masked_fill(~mask_BL.unsqueeze(-1), lowest).amax(dim=1)


class Pooled(nn.Module):
    """An encoder, a pooling, and RoBERTa's classification head (dense, tanh, projection).

    `config` is that of transformers' model.
    """

    def __init__(
        self, encoder: nn.Module, pooling: Callable[[Tensor, Tensor], Tensor], config: Any
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", HEAD_DROPOUT))
        self.scores = nn.Linear(config.hidden_size, config.num_labels)
        initializer_range = getattr(config, "initializer_range", INITIALIZER_RANGE)
        for layer in (self.dense, self.scores):
            nn.init.normal_(layer.weight, std=initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Batch → logits_BC."""
        hidden_BLD = self.encoder(batch)
        if hidden_BLD.shape[:2] != batch.input_ids.shape:
            raise ConfigError(
                "--pooling needs a hidden state for each token, but this encoder returns "
                f"{tuple(hidden_BLD.shape[:2])} for {tuple(batch.input_ids.shape)} tokens"
            )
        mask_BL = batch.attention_mask
        if mask_BL is None:
            mask_BL = torch.ones_like(batch.input_ids, dtype=torch.bool)
        pooled_BD = self.dropout(self.pooling(hidden_BLD, mask_BL))
        logits_BC: Tensor = self.scores(self.dropout(torch.tanh(self.dense(pooled_BD))))
        return logits_BC
