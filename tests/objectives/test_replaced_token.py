"""Replaced-token detection: who learns from what, and what counts as replaced."""

import dataclasses

import numpy as np
import pytest
import torch

from smallbench.models.config import DebertaConfig, ElectraConfig
from smallbench.objectives.config import ReplacedTokenConfig
from smallbench.objectives.masking import Vocabulary, micro_batches, step_generator
from smallbench.objectives.replaced_token import ReplacedToken

VOCABULARY = Vocabulary(
    size=90, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)
SIZES = {
    "vocab_size": 90,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODELS = {"electra": ElectraConfig(**SIZES), "deberta": DebertaConfig(**SIZES)}


def build(architecture="electra", **values):
    torch.manual_seed(0)
    if architecture == "deberta":
        values.setdefault("two_segment_fraction", 0.0)
    return ReplacedToken(ReplacedTokenConfig(**values), MODELS[architecture], VOCABULARY)


def batch_of(objective, num_rows=6, *, padded=False):
    ids_BL = np.random.default_rng(0).integers(5, 90, size=(num_rows, 32))
    ids_BL[:, 0], ids_BL[:, -1] = 2, 3
    if padded:
        ids_BL[1, 9], ids_BL[1, 10:] = 3, 0
    return objective.corrupt(ids_BL, step_generator(0, 0)), ids_BL


def only(objective, batch):
    (part,) = micro_batches(batch, batch.num_rows)
    return part


@pytest.mark.parametrize("architecture", MODELS)
def test_the_token_embedding_is_one_tensor_and_gets_both_gradients(architecture):
    objective = build(architecture)
    shared = objective.model.embeddings.tokens.weight
    assert objective.generator.embeddings.tokens.weight is shared
    assert sum(parameter is shared for parameter in objective.parameters()) == 1
    batch = only(objective, batch_of(objective)[0])
    gradients = []
    for term in ("generator", "discriminator"):
        objective.zero_grad()
        objective(batch).losses[term].backward()
        gradients.append(shared.grad.clone())
        assert gradients[-1].any()
    objective.zero_grad()
    sum(objective(batch).losses.values()).backward()
    torch.testing.assert_close(shared.grad, gradients[0] + gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("sharing", ["shared", "gradient_disentangled", "none"])
def test_no_gradient_reaches_the_generator_through_sampling(architecture, sharing):
    objective = build(architecture, embedding_sharing=sharing)
    objective(only(objective, batch_of(objective)[0])).losses["discriminator"].backward()
    of_discriminator = {id(p) for p in objective.model.parameters()}
    for name, parameter in objective.generator.named_parameters():
        shared = id(parameter) in of_discriminator and sharing == "shared"
        assert shared or parameter.grad is None or not parameter.grad.any(), name


def test_disentangled_sharing_reads_the_generators_table_and_does_not_pull_on_it():
    objective = build(embedding_sharing="gradient_disentangled")
    table = objective.generator.embeddings.tokens.weight
    assert torch.equal(objective.model.embeddings.tokens.weight, table), "Δ starts at zero"
    sums = objective(only(objective, batch_of(objective)[0]))
    sums.losses["discriminator"].backward(retain_graph=True)
    assert table.grad is None
    assert objective.model.embeddings.tokens.delta.grad.any()
    objective.zero_grad()
    sums.losses["generator"].backward()
    assert table.grad.any()
    assert objective.model.embeddings.tokens.delta.grad is None


def test_a_sample_equal_to_the_original_counts_as_original():
    objective = build()
    batch = only(objective, batch_of(objective)[0])
    sampled = batch.target_ids.clone()
    sampled[::2] = (sampled[::2] + 1).clamp(max=89)
    changed = sampled != batch.target_ids
    filled, labels_BL = objective.fill(batch, sampled)
    flat = labels_BL.flatten()
    assert torch.equal(flat[batch.target_positions].bool(), changed)
    assert flat.sum() == changed.sum()
    assert torch.equal(filled.input_ids.flatten()[batch.target_positions], sampled)


def test_true_tokens_as_samples_restore_the_text_and_label_nothing():
    objective = build(two_segment_fraction=0.0)
    corrupted, ids_BL = batch_of(objective)
    batch = only(objective, corrupted)
    filled, labels_BL = objective.fill(batch, batch.target_ids)
    assert not labels_BL.any()
    assert torch.equal(filled.input_ids, torch.from_numpy(ids_BL))


def test_true_tokens_as_samples_make_always_no_the_right_answer(monkeypatch):
    objective = build()
    batch = only(objective, batch_of(objective)[0])
    real = objective.loss_of_targets

    def with_true_samples(*arguments):
        result, ids_M = real(*arguments)
        return result._replace(samples=ids_M), ids_M

    monkeypatch.setattr(objective, "loss_of_targets", with_true_samples)
    torch.nn.init.zeros_(objective.model.detector.score.weight)
    torch.nn.init.constant_(objective.model.detector.score.bias, -20.0)
    sums = objective(batch)
    assert sums.losses["discriminator"] < 1e-5
    assert sums.counts["discriminator_accuracy"][1] == batch.num_tokens
    assert sums.counts["replaced_fraction"][1] == 0


@pytest.mark.parametrize("architecture", MODELS)
def test_losses_do_not_change_with_the_number_of_micro_batches(architecture):
    objective = build(architecture)
    batch, _ = batch_of(objective, padded=True)
    totals = []
    for size in (6, 4, 1):
        parts = [objective(part) for part in micro_batches(batch, size)]
        totals.append(
            {term: sum(p.losses[term].item() for p in parts) for term in objective.weights}
            | {name: sum(p.counts[name][1].item() for p in parts) for name in parts[0].counts}
        )
    for other in totals[1:]:
        assert other == pytest.approx(totals[0], rel=1e-5)


def test_targets_are_hidden_tokens_and_all_tokens():
    objective = build()
    batch = only(objective, batch_of(objective, padded=True)[0])
    counts = objective.num_targets(batch)
    assert counts["discriminator"] == batch.attention_mask.sum() == 5 * 32 + 10
    assert counts["generator"] == batch.target_ids.numel()


def test_padding_takes_no_part_in_the_discriminators_loss():
    objective = build()
    batch = only(objective, batch_of(objective, padded=True)[0])
    other_ids = batch.input_ids.clone()
    other_ids[~batch.attention_mask] = 50
    a, b = objective(batch), objective(dataclasses.replace(batch, input_ids=other_ids))
    assert a.losses["discriminator"].item() == b.losses["discriminator"].item()


def test_uniforms_are_the_batchs_and_belong_to_the_targets():
    objective = build()
    batch, _ = batch_of(objective)
    again, _ = batch_of(objective)
    assert torch.equal(batch.uniforms, again.uniforms)
    part = only(objective, batch)
    assert torch.equal(part.target_uniforms, batch.uniforms.flatten()[part.target_positions])


def test_the_generator_is_narrower_and_keeps_the_size_of_heads_and_embeddings():
    objective = build()
    narrow = objective.generator.config
    assert (narrow.hidden_size, narrow.intermediate_size) == (8, 16)
    assert narrow.num_attention_heads == 1
    assert narrow.embedding_size == 16


def test_flops_count_the_matrix_products():
    from torch.utils.flop_counter import FlopCounterMode

    objective = build()
    batch = only(objective, batch_of(objective)[0])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective.train()(batch)
    assert objective.train_flops(batch) == 3 * counter.get_total_flops()
