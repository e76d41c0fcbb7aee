"""The masked-LM loss: the sparse head is the dense head, and counts are what is summed over."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smallbench.batch import IGNORED, with_targets
from smallbench.errors import ConfigError
from smallbench.models.config import BertConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.objectives.masking import Vocabulary, micro_batches, step_generator
from tests.plugins.span_masking import SpanConfig, SpanMasking

VOCABULARY = Vocabulary(
    size=90, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)


MODEL = BertConfig(
    vocab_size=90,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return MaskedLM(MaskedLMConfig(), MODEL, VOCABULARY).eval()


@pytest.fixture
def related():
    """The objective with related segments in half of the rows."""
    torch.manual_seed(0)
    config = MaskedLMConfig(two_segment_fraction=0.0, related_fraction=0.5, related_weight=2.0)
    return MaskedLM(config, MODEL, VOCABULARY).eval()


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


def test_relations_are_predicted_from_the_mean_of_the_tokens(related):
    batch = with_targets(related.corrupt(rows(8), step_generator(0, 0)))
    known_B = batch.relations.isfinite().all(dim=1)
    assert 0 < known_B.sum() < 8
    sums = related(batch)
    scores_B2 = related.relation_head(related.model(batch)[known_B].mean(dim=1))
    wanted_B2 = batch.relations[known_B]
    expected = F.binary_cross_entropy_with_logits(scores_B2, wanted_B2, reduction="sum")
    torch.testing.assert_close(sums.losses["relation"], expected)
    assert related.num_targets(batch)["relation"] == 2 * known_B.sum()
    assert related.weights == {"mlm": 1.0, "relation": 2.0}


def test_relations_of_micro_batches_are_those_of_the_batch(related):
    batch = related.corrupt(rows(8), step_generator(0, 0))
    whole = related(with_targets(batch)).losses
    parts = [related(part).losses for part in micro_batches(batch, 3)]
    for term in ("mlm", "relation"):
        torch.testing.assert_close(sum(part[term] for part in parts), whole[term])
    counted = sum(related.num_targets(part)["relation"] for part in micro_batches(batch, 3))
    assert counted == related.num_targets(with_targets(batch))["relation"]


def test_held_out_rows_are_those_of_the_objective_without_relations(related):
    plain = MaskedLM(MaskedLMConfig(two_segment_fraction=0.0), MODEL, VOCABULARY)
    mine, others = (o.corrupt_held_out(rows(), step_generator(0, 0)) for o in (related, plain))
    assert torch.equal(mine.input_ids, others.input_ids)
    assert torch.equal(mine.labels, others.labels)
    assert mine.relations is mine.token_type_ids is None


def test_the_two_kinds_of_segments_exclude_each_other():
    with pytest.raises(ConfigError, match=r"related_fraction 0\.5 .* one of the two must be 0"):
        MaskedLMConfig(related_fraction=0.5)


def test_a_chooser_of_ones_own_gets_the_masking_rate_of_each_row():
    config = SpanConfig(
        mask_fraction=0.5, two_segment_fraction=0.0, related_fraction=0.5, related_mask_fraction=0.1
    )
    spans = SpanMasking(config, MODEL, VOCABULARY)
    batch = spans.corrupt(rows(8), step_generator(0, 0))
    related_B = batch.relations.isfinite().all(dim=1)
    hidden_B = (batch.labels != IGNORED).sum(dim=1)
    assert set(hidden_B[~related_B].tolist()) == {15}, "half of 30 tokens"
    assert set(hidden_B[related_B].tolist()) == {3}, "a tenth of 29 tokens"
