"""The masked-LM loss: the sparse head is the dense head, and counts are what is summed over."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smallbench.batch import IGNORED, with_targets
from smallbench.models.config import BertConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.corruption import micro_batches
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.objectives.masking import Vocabulary, step_generator

VOCABULARY = Vocabulary(
    size=90, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    model = BertConfig(
        vocab_size=90,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return MaskedLM(MaskedLMConfig(), model, VOCABULARY).eval()


def rows(num_rows=6, length=32, *, padded=False):
    ids_BL = np.random.default_rng(0).integers(5, 90, size=(num_rows, length))
    ids_BL[:, 0], ids_BL[:, -1] = 2, 3
    if padded:
        ids_BL[1, 9], ids_BL[1, 10:] = 3, 0
    return ids_BL


@pytest.mark.parametrize("padded", [False, True])
def test_sparse_head_equals_dense_head(objective, padded):
    batch = with_targets(objective.corrupt(rows(padded=padded), step_generator(0, 0)))
    assert (batch.attention_mask is not None) == padded
    sums = objective(batch)
    logits_BLV = objective.model.predict_tokens(objective.model(batch))
    dense = F.cross_entropy(
        logits_BLV.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(sums.losses["mlm"], dense, rtol=1e-6, atol=1e-5)
    guessed = logits_BLV.argmax(-1) == batch.labels
    assert sums.counts["accuracy"][1] == guessed.sum()


def test_targets_are_the_labels_in_order(objective):
    batch = with_targets(objective.corrupt(rows(), step_generator(0, 0)))
    flat = batch.labels.flatten()
    assert torch.equal(flat[batch.target_positions], batch.target_ids)
    assert objective.num_targets(batch)["mlm"] == (flat != IGNORED).sum()


def test_first_loss_is_that_of_uniform_guessing(objective):
    batch = with_targets(objective.corrupt(rows(64), step_generator(0, 0)))
    mean = objective(batch).losses["mlm"] / batch.target_ids.numel()
    assert mean.item() == pytest.approx(np.log(128), abs=0.05), "ln of the padded vocabulary"


def test_micro_batches_hold_all_rows_and_targets(objective):
    batch = objective.corrupt(rows(6), step_generator(0, 0))
    parts = micro_batches(batch, 4)
    assert [part.num_rows for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.input_ids)
    assert sum(part.target_ids.numel() for part in parts) == (batch.labels != IGNORED).sum()


def test_flops_count_the_matrix_products(objective):
    """Forward FLOPs by formula equal what PyTorch counts in the model's own operations."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = with_targets(objective.corrupt(rows(), step_generator(0, 0)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective.train()(batch)
    assert objective.train_flops(batch) == 3 * counter.get_total_flops()
