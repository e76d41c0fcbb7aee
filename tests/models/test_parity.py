"""Our architectures compute the functions of transformers' classes, with the same weights."""

import pytest
import torch
import transformers

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.config import (
    BertConfig,
    DebertaConfig,
    ElectraConfig,
    RobertaConfig,
    RoformerConfig,
)
from smallbench.models.convert import target_of

VOCAB_SIZE = 97  # no multiple of 64, so that there are padding rows
PAD_ID = 1

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
MODELS = {
    "bert-factorised": (BertConfig(embedding_size=16, **SIZES), "tokens"),
    "bert-plain": (BertConfig(embedding_size=32, **SIZES), "tokens"),
    "bert-replaced": (BertConfig(embedding_size=32, **SIZES), "replaced"),
    "roberta": (RobertaConfig(embedding_size=32, **SIZES), "tokens"),
    "roberta-replaced": (RobertaConfig(embedding_size=32, **SIZES), "replaced"),
    "electra": (ElectraConfig(embedding_size=16, **SIZES), "replaced"),
    "electra-generator": (ElectraConfig(embedding_size=16, **SIZES), "tokens"),
    "deberta": (DebertaConfig(embedding_size=16, **SIZES), "tokens"),
    "deberta-plain": (DebertaConfig(embedding_size=32, **SIZES), "tokens"),
    "deberta-clamped": (
        DebertaConfig(embedding_size=16, max_relative_positions=7, **SIZES),
        "tokens",
    ),
    "roformer": (RoformerConfig(embedding_size=32, **SIZES), "tokens"),
    "roformer-factorised": (RoformerConfig(embedding_size=16, **SIZES), "tokens"),
    "roformer-replaced": (RoformerConfig(embedding_size=16, **SIZES), "replaced"),
    "deberta-replaced": (DebertaConfig(embedding_size=16, **SIZES), "replaced"),
}


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    """Our model, transformers' with the same weights, and how they correspond."""
    torch.manual_seed(0)
    config, head = MODELS[request.param]
    ours = ARCHITECTURES[config.architecture](config, head=head).eval()
    for parameter in ours.parameters():  # biases and norms too; large, so that wrong wiring shows
        torch.nn.init.normal_(parameter, std=0.2)
    target = target_of(config, head=head, pad_token_id=PAD_ID)
    model_class = getattr(transformers, target.class_name)
    theirs = model_class(model_class.config_class(**target.config)).eval()
    packed = target.pack(ours.state_dict())
    if target.left_behind:  # the bare model's own names have no prefix
        prefix = f"{target.model_type}."
        packed = {name.removeprefix(prefix): tensor for name, tensor in packed.items()}
    missing, unexpected = theirs.load_state_dict(packed, strict=False)
    assert not unexpected
    tied = ("decoder", "generator_lm_head.weight")
    assert all(any(part in name for part in tied) for name in missing), missing
    theirs.tie_weights()
    return ours, theirs, target


def inputs(ours, *, padded: bool, segments: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(PAD_ID + 1, VOCAB_SIZE, (3, 20), generator=generator)
    types_BL = torch.randint(0, 2, (3, 20), generator=generator) if segments else None
    mask_BL = None
    if padded:
        mask_BL = torch.arange(20)[None, :] < torch.tensor([20, 11, 3])[:, None]
        ids_BL[~mask_BL] = PAD_ID
    if ours.config.type_vocab_size < 2:
        types_BL = None
    return Batch(ids_BL, mask_BL, types_BL)


def outputs(ours, theirs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both; hidden states where theirs has no head."""
    hidden_BLD = ours(batch)
    output = theirs(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
    )
    if "logits" not in output:
        return hidden_BLD, output.last_hidden_state
    if hasattr(ours, "detector"):
        return ours.predict_replaced(hidden_BLD), output.logits
    return ours.predict_tokens(hidden_BLD)[..., :VOCAB_SIZE], output.logits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@torch.no_grad()
def test_logits_equal_transformers(pair, padded, segments):
    ours, theirs, _ = pair
    batch = inputs(ours, padded=padded, segments=segments)
    actual, expected = outputs(ours, theirs, batch)
    real = slice(None) if batch.attention_mask is None else batch.attention_mask
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


def test_gradients_equal_transformers(pair):
    ours, theirs, target = pair
    batch = inputs(ours, padded=True, segments=True)
    probe = None
    for model, output in zip((ours, theirs), outputs(ours, theirs, batch), strict=True):
        if probe is None:
            probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
            probe[~batch.attention_mask] = 0
        model.zero_grad()
        (output * probe).sum().backward(retain_graph=model is ours)
    bare = target.left_behind and not hasattr(theirs, target.model_type)
    prefix = f"{target.model_type}." if bare else ""
    their_gradients = {
        prefix + name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters()
    }
    expected = target.unpack(their_gradients)
    for name, parameter in ours.named_parameters():
        if name in target.left_behind:
            continue
        gradient, expected_gradient = parameter.grad, expected[name]
        if gradient is None:
            assert not expected_gradient.any(), name
            continue
        if name == "embeddings.tokens.weight":
            # transformers blocks the input gradient of the padding token; compare the rest.
            gradient, expected_gradient = gradient[PAD_ID + 1 :], expected_gradient[PAD_ID + 1 :]
        scale = max(expected_gradient.abs().max().item(), 1)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=2e-5 * scale)


def test_weights_round_trip(pair):
    ours, _, target = pair
    state = ours.state_dict()
    back = target.unpack(target.pack(state))
    assert back.keys() | target.left_behind == state.keys(), "every weight travels"
    for name, tensor in back.items():
        rows = VOCAB_SIZE if name in {"embeddings.tokens.weight", "predictor.bias"} else None
        assert torch.equal(tensor[:rows], state[name][:rows]), name


@torch.no_grad()
def test_padding_positions_do_not_change_the_others(pair):
    ours, _, _ = pair
    batch = inputs(ours, padded=True, segments=False)
    other_ids = batch.input_ids.clone()
    other_ids[~batch.attention_mask] = 7
    changed = Batch(other_ids, batch.attention_mask)
    a, b = ours(batch), ours(changed)
    assert torch.equal(a[batch.attention_mask], b[batch.attention_mask])


@torch.no_grad()
def test_a_row_is_encoded_as_it_is_alone(pair):
    ours, _, _ = pair
    batch = inputs(ours, padded=True, segments=False)
    together = ours(batch)[1, :11]
    alone = ours(Batch(batch.input_ids[1:2, :11]))[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
