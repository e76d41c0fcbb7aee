"""ELECTRA: BERT's network with a factorised embedding; what differs is its objective.

The function of transformers' `ElectraForPreTraining` with the head `replaced` (the discriminator),
of `ElectraForMaskedLM` with the head `tokens` (the generator).
"""

from __future__ import annotations

from smallbench.models.bert import Bert
from smallbench.models.config import ElectraConfig
from smallbench.models.encoder import Head


class Electra(Bert):
    """ELECTRA's encoder with a head."""

    flops_formula = Bert.flops_formula  # the same network

    def __init__(self, config: ElectraConfig, *, head: Head = "replaced") -> None:
        super().__init__(config, head=head)
