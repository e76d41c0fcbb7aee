"""RoFormer's rotation, and initial weights that look for equal tokens."""

import pytest
import torch

from smallbench.batch import Batch
from smallbench.models.config import RoformerConfig
from smallbench.models.roformer import Roformer, angles, rotate

SIZES = {
    "vocab_size": 997,
    "embedding_size": 128,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def test_a_product_depends_on_the_distance_alone():
    turned = angles(64, 32).repeat(1, 2)
    query, key = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    query_Ld = rotate(query.expand(64, 32), turned.cos(), turned.sin())
    key_Ld = rotate(key.expand(64, 32), turned.cos(), turned.sin())
    products = query_Ld @ key_Ld.T
    for distance in (-40, -3, 0, 5, 50):
        along = products.diagonal(distance)
        assert along.std() < 1e-4
    assert products.diagonal(5)[0] != pytest.approx(products.diagonal(-5)[0].item(), abs=1e-3)


def weights_of_first_layer(config):
    """Attention weights BHLL of the first layer on rows whose second half repeats the first."""
    torch.manual_seed(0)
    model = Roformer(config, head="none")
    half = torch.randint(5, 997, (8, 40))
    batch = Batch(torch.cat([half, half.flip(1)], dim=1))
    context, attention = model.context(batch), model.layers[0].attention
    hidden = model.embeddings(batch)
    query, key, _ = attention.qkv(hidden).view(8, 80, 3, 4, 32).permute(2, 0, 3, 1, 4)
    query, key = (rotate(x, context.cos, context.sin) for x in (query, key))
    return (query @ key.transpose(-1, -2) / 32**0.5).softmax(-1)


@torch.no_grad()
def test_the_last_head_begins_by_attending_to_equal_tokens():
    places = torch.arange(80)
    equal = 79 - places  # where the same token stands in the other half
    usual, same = (
        weights_of_first_layer(RoformerConfig(attention_init=init, **SIZES))[:, :, places, equal]
        for init in ("normal", "same_token")
    )
    assert usual.mean(dim=(0, 2)).max() < 0.03
    assert same.mean(dim=(0, 2))[-1] > 0.15
    assert same.mean(dim=(0, 2))[:-1].max() < 0.03
