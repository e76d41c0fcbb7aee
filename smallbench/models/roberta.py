"""RoBERTa: BERT's network without segments; what differs is its vocabulary and its training.

The function of transformers' `RobertaForMaskedLM`, whose position table begins with
`pad_token_id + 1` rows that no token uses; ours has no such rows, the export adds them.
"""

from __future__ import annotations

from smallbench.models.bert import Bert
from smallbench.models.config import RobertaConfig
from smallbench.models.encoder import Head


class Roberta(Bert):
    """RoBERTa's encoder with a head."""

    flops_formula = Bert.flops_formula  # the same network

    def __init__(self, config: RobertaConfig, *, head: Head = "tokens") -> None:
        super().__init__(config, head=head)
