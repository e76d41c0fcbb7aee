"""Our architectures compute the functions of transformers' classes, with the same weights."""

import pytest
import torch
from transformers import BertConfig as TheirBertConfig
from transformers import BertForMaskedLM, ElectraConfig, ElectraForMaskedLM

from smallbench.batch import Batch
from smallbench.export.convert import PADDED, target_of
from smallbench.models.bert import Bert, sinusoids
from smallbench.models.config import BertConfig

THEIRS = {
    "electra": (ElectraConfig, ElectraForMaskedLM),
    "bert": (TheirBertConfig, BertForMaskedLM),
}
VOCAB_SIZE = 97  # no multiple of 64, so that there are padding rows


def pair(embedding_size: int):
    """Our model, transformers' with the same weights, and how they correspond."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        embedding_size=embedding_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.2,  # large, so that wrong wiring shows
    )
    ours = Bert(config).eval()
    for parameter in ours.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, std=0.2)
    target = target_of(config)
    config_class, model_class = THEIRS[target.model_type]
    theirs = model_class(config_class(**target.config)).eval()
    packed = target.pack(ours.state_dict(), vocab_size=VOCAB_SIZE)
    missing, unexpected = theirs.load_state_dict(packed, strict=False)
    assert not unexpected
    assert all("decoder" in name or name == "generator_lm_head.weight" for name in missing), missing
    theirs.tie_weights()
    return ours, theirs, target


def inputs(*, padded: bool, segments: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(0, VOCAB_SIZE, (3, 20), generator=generator)
    types_BL = torch.randint(0, 2, (3, 20), generator=generator) if segments else None
    mask_BL = None
    if padded:
        mask_BL = torch.arange(20)[None, :] < torch.tensor([20, 11, 3])[:, None]
    return Batch(ids_BL, mask_BL, types_BL)


@pytest.mark.parametrize("embedding_size", [16, 32], ids=["factorised", "plain"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@torch.no_grad()
def test_logits_equal_transformers(embedding_size, padded, segments):
    ours, theirs, _ = pair(embedding_size)
    batch = inputs(padded=padded, segments=segments)
    logits_BLV = ours.predict_tokens(ours(batch))[..., :VOCAB_SIZE]
    expected_BLV = theirs(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
    ).logits
    real = slice(None) if batch.attention_mask is None else batch.attention_mask
    torch.testing.assert_close(logits_BLV[real], expected_BLV[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("embedding_size", [16, 32], ids=["factorised", "plain"])
def test_gradients_equal_transformers(embedding_size):
    ours, theirs, target = pair(embedding_size)
    batch = inputs(padded=True, segments=True)
    probe = torch.randn(3, 20, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    probe[~batch.attention_mask] = 0
    (ours.predict_tokens(ours(batch))[..., :VOCAB_SIZE] * probe).sum().backward()
    logits = theirs(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
    ).logits
    (logits * probe).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    expected = target.unpack(
        {name: p.grad for name, p in theirs.named_parameters()},
        num_rows=ours.config.num_embedding_rows,
    )
    for name, gradient in gradients.items():
        expected_gradient = expected[name]
        if name == "embeddings.tokens.weight":
            # transformers blocks the input gradient of the padding token, id 0; compare the rest.
            gradient, expected_gradient = gradient[1:], expected_gradient[1:]
        scale = expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=2e-5 * max(scale, 1))


@pytest.mark.parametrize("embedding_size", [16, 32], ids=["factorised", "plain"])
def test_weights_round_trip_through_transformers(embedding_size):
    ours, theirs, target = pair(embedding_size)
    back = target.unpack(theirs.state_dict(), num_rows=ours.config.num_embedding_rows)
    state = ours.state_dict()
    assert back.keys() == state.keys(), "every weight travels"
    for name, tensor in state.items():
        rows = VOCAB_SIZE if name in PADDED else None
        assert torch.equal(back[name][:rows], tensor[:rows]), name


def test_sinusoidal_positions_are_as_strong_as_tokens_and_shift_by_a_rotation():
    positions = sinusoids(64, 32).double()
    assert positions.shape == (64, 32)
    assert positions.pow(2).mean().sqrt() == pytest.approx(0.5**0.5, abs=1e-6)
    products = positions @ positions.T
    for shift in (1, 5, 20):  # the product of two positions depends on their distance alone
        torch.testing.assert_close(
            products.diagonal(shift), products[0, shift].expand(64 - shift), rtol=0, atol=1e-5
        )
    config = BertConfig(vocab_size=VOCAB_SIZE, position_init="sinusoidal", num_hidden_layers=1)
    weight = Bert(config).embeddings.positions.weight
    assert weight.std().item() == pytest.approx(config.initializer_range, rel=0.2)


def test_padding_positions_do_not_change_the_others():
    ours, _, _ = pair(16)
    batch = inputs(padded=True, segments=False)
    other_ids = batch.input_ids.clone()
    other_ids[~batch.attention_mask] = 7
    changed = Batch(other_ids, batch.attention_mask)
    with torch.no_grad():
        a, b = ours(batch), ours(changed)
    assert torch.equal(a[batch.attention_mask], b[batch.attention_mask])
