"""Heads that begin by looking at neighbours do so, whatever the tokens are."""

import dataclasses

import pytest
import torch

from smallbench.batch import Batch
from smallbench.errors import ConfigError
from smallbench.models.attention_init import (
    OFFSETS,
    POSITION_STRENGTH,
    frequencies,
    local_positions,
    rotation,
)
from smallbench.models.bert import Bert
from smallbench.models.config import BertConfig

CONFIG = BertConfig(
    vocab_size=500,
    embedding_size=128,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.05,
    attention_init="local",
)


def test_products_of_positions_depend_on_their_distance_alone():
    positions = local_positions(64, 32).double()
    assert positions.pow(2).mean() == pytest.approx(1, abs=1e-6)
    products = positions @ positions.T
    for distance in (1, 5, 20):
        expected = products[0, distance].expand(64 - distance)
        torch.testing.assert_close(products.diagonal(distance), expected, rtol=0, atol=1e-4)
        assert products[0, distance] < 0.8 * products[0, 0]


@pytest.mark.parametrize("offset", OFFSETS)
def test_turning_a_position_moves_it(offset):
    positions = local_positions(40, 32)
    moved = positions[5:30] @ rotation(offset * frequencies(32)).T
    torch.testing.assert_close(moved, positions[5 + offset : 30 + offset], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden_size", "num_heads", "clearly"), [(128, 2, 0.6), (64, 1, 0.5), (256, 4, 0.5)]
)
@torch.no_grad()
def test_the_heads_of_the_lower_layers_look_at_neighbours_first(hidden_size, num_heads, clearly):
    """With an embedding of the same size, larger and smaller."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, hidden_size=hidden_size, num_attention_heads=num_heads)
    model = Bert(config)
    hidden_BLD = model.embeddings(Batch(torch.randint(0, 500, (8, 128))))
    query = torch.arange(2, 126)
    for head in range(num_heads):
        weights_BLL = attention_weights(model, 0, head, hidden_BLD)
        assert weights_BLL[:, query, query + OFFSETS[head]].mean() > clearly
        weights_BLL = attention_weights(model, 1, head, hidden_BLD)
        assert weights_BLL.max() < 0.1, "the upper half: next to the mean of the row"


def attention_weights(model, layer, head, hidden_BLD):
    q_BLD, k_BLD, _ = model.layers[layer].attention.qkv(hidden_BLD).chunk(3, dim=-1)
    own = slice(head * 64, (head + 1) * 64)
    return (q_BLD[..., own] @ k_BLD[..., own].transpose(1, 2) / 8).softmax(dim=-1)


def test_positions_are_stronger_than_tokens_by_what_is_stated():
    embeddings = Bert(CONFIG).embeddings
    tokens, positions = embeddings.tokens.weight, embeddings.positions.weight
    ratio = (positions.pow(2).mean() / tokens.pow(2).mean()).sqrt()
    assert ratio.item() == pytest.approx(POSITION_STRENGTH, rel=0.02)


@pytest.mark.parametrize(("key", "value"), [("embedding_size", 63), ("num_attention_heads", 128)])
def test_a_shape_that_cannot_hold_the_pattern_is_refused(key, value):
    with pytest.raises(ConfigError, match="attention_init 'local'"):
        dataclasses.replace(CONFIG, **{key: value})
