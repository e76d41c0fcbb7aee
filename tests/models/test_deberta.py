"""Disentangled attention: positions count by their difference alone, in every precision."""

import pytest
import torch

from smallbench.batch import Batch
from smallbench.models.config import DebertaConfig
from smallbench.models.deberta import Deberta
from smallbench.models.kernels.disentangled import skew

CONFIG = DebertaConfig(
    vocab_size=64,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    max_relative_positions=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Deberta(CONFIG).eval()


@pytest.mark.parametrize("length", [1, 2, 7, 128])
def test_skew_reads_each_row_from_its_own_position_on(length):
    products = torch.randn(2, 3, length, 2 * length)
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    expected = products[:, :, i, j - i + length]
    assert torch.equal(skew(products), expected)
    assert skew(products).untyped_storage().data_ptr() == products.untyped_storage().data_ptr()


@torch.no_grad()
def test_shifting_a_text_does_not_change_it(model):
    """Tokens see the same scores wherever their text begins: what lies before is masked."""
    ids = torch.randint(0, 64, (1, 12))
    shift = 9
    shifted_ids = torch.cat([torch.randint(0, 64, (1, shift)), ids], dim=1)
    mask = torch.arange(12 + shift)[None, :] >= shift
    alone = model(Batch(ids))
    shifted = model(Batch(shifted_ids, mask))[:, shift:]
    torch.testing.assert_close(shifted, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_order_matters(model):
    ids = torch.arange(12)[None, :]
    assert not torch.allclose(model(Batch(ids))[0, 0], model(Batch(ids.flip(1)))[0, -1], atol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_bf16_is_finite_and_near_float32_in_both_directions(model, padded):
    ids = torch.randint(0, 64, (4, 48))
    mask = torch.arange(48)[None, :] < torch.tensor([48, 30, 2, 1])[:, None] if padded else None
    exact = model(Batch(ids, mask))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(Batch(ids, mask))
    rounded.float().pow(2).sum().backward()
    real = slice(None) if mask is None else mask
    assert (rounded[real].float() - exact[real]).abs().mean() < 0.05
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.gpu
def test_fp16_on_a_gpu_is_finite_and_near_float32(model):
    ids = torch.randint(0, 64, (4, 48))
    exact = model(Batch(ids))
    with torch.autocast("cuda", torch.float16):
        rounded = model.cuda()(Batch(ids.cuda()))
    assert (rounded.float().cpu() - exact).abs().mean() < 0.05
    rounded.float().pow(2).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
