"""FLOPs: PyTorch's count of a model equals the formula that the model declares."""

import pytest
import torch

from smallbench.models import ARCHITECTURES
from smallbench.models.bert import Bert
from smallbench.models.config import (
    BertConfig,
    DebertaConfig,
    ElectraConfig,
    RobertaConfig,
    RoformerConfig,
)
from smallbench.models.flops import counted_flops

SIZES = {
    "vocab_size": 90,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CONFIGS = [
    BertConfig(**SIZES),
    ElectraConfig(**SIZES),
    DebertaConfig(**SIZES),
    RobertaConfig(**SIZES | {"embedding_size": 32}),
    RoformerConfig(**SIZES),
]


@pytest.mark.parametrize("head", ["tokens", "replaced", "none"])
@pytest.mark.parametrize("length", [16, 48])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.architecture)
def test_the_count_equals_the_formula(config, length, head):
    architecture = ARCHITECTURES[config.architecture]
    model = architecture(config, head=head)
    row, target = counted_flops(architecture, config, head, length)
    if config.architecture == "deberta":
        # Products that are made for all relative positions at once, and of which half is read;
        # the maps of the positions are not a row's, they are one batch's.
        size = config.hidden_size
        row -= 3 * (4 * length**2 * size + 4 * (2 * length + 1) * size**2)
    for num_rows, num_targets in ((1, 0), (5, 7)):
        formula = model.forward_flops(num_rows=num_rows, length=length, num_targets=num_targets)
        assert formula == num_rows * row + num_targets * target


class Gated(Bert):
    """A subclass whose network is another; it declares no formula."""

    def __init__(self, config, *, head="tokens"):
        super().__init__(config, head=head)
        for layer in self.layers:
            layer.gate = torch.nn.Linear(config.hidden_size, config.hidden_size)
            layer.forward = lambda hidden, context, layer=layer: (
                type(layer).forward(layer, hidden, context) * layer.gate(hidden)
            )


def test_a_subclass_inherits_no_formula():
    config, length = CONFIGS[0], 16
    plain = Bert(config).forward_flops(num_rows=4, length=length, num_targets=3)
    gated = Gated(config).forward_flops(num_rows=4, length=length, num_targets=3)
    assert gated - plain == 4 * length * 3 * 2 * config.hidden_size**2


def test_counting_draws_no_random_number():
    state = torch.get_rng_state()
    Gated(CONFIGS[0])
    torch.set_rng_state(state)
    counted_flops.cache_clear()
    counted_flops(Gated, BertConfig(**SIZES, attention_init="local"), "tokens", 16)
    assert torch.equal(torch.get_rng_state(), state)
