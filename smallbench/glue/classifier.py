"""Classifiers to fine-tune: our encoders where we have the architecture, transformers' elsewhere.

Either way the weights and the head are those of transformers' `…ForSequenceClassification`, so a
score does not depend on which of the two computed it; ours take a fraction of the time.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.convert import body_of

HEADS: Mapping[str, Callable[[Any], nn.Module]] = {
    "bert": lambda theirs: nn.Sequential(theirs.bert.pooler, theirs.dropout, theirs.classifier),
    "deberta": lambda theirs: nn.Sequential(theirs.pooler, theirs.dropout, theirs.classifier),
    "electra": lambda theirs: theirs.classifier,
    "roberta": lambda theirs: theirs.classifier,
}
"""By transformers' name of the architecture: its head, from hidden_BLD to logits_BC."""


def build_classifier(theirs: Any, *, pads_left: bool) -> nn.Module:
    """A module from a `Batch` to logits_BC with the weights of transformers' model `theirs`.

    Rows that are padded on the left stay transformers': our positions count from a row's start.
    """
    body = None if pads_left else body_of(theirs.config.to_dict())
    if body is None:
        return Foreign(theirs)
    config, target = body
    encoder = ARCHITECTURES[config.architecture](config, head="none")
    encoder.load_state_dict(target.unpack(theirs.state_dict()))
    return Native(encoder, HEADS[theirs.config.model_type](theirs))


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
    """transformers' model, whatever it is."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs
        # Its DeBERTa hides padding with float32's lowest number, which no half type holds.
        self.needs_float32 = theirs.config.model_type == "deberta"

    def forward(self, batch: Batch) -> Tensor:
        """Batch → logits_BC."""
        inputs = {"input_ids": batch.input_ids}
        if batch.attention_mask is not None:  # some compute with it, as with a tokenizer's 0 and 1
            inputs["attention_mask"] = batch.attention_mask.long()
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        device = batch.input_ids.device.type
        is_autocast = torch.is_autocast_enabled(device) and not self.needs_float32
        with torch.autocast(device, enabled=is_autocast):
            logits_BC: Tensor = self.theirs(**inputs).logits
        return logits_BC
