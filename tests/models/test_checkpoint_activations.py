"""Activation checkpointing changes the memory of a step, not its numbers."""

from dataclasses import replace

import pytest
import torch

from smallbench.models import ARCHITECTURES
from smallbench.models.encoder import Encoder, checkpoint_activations
from smallbench.objectives.config import MaskedLMConfig, ReplacedTokenConfig
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.objectives.masking import micro_batches, step_generator
from smallbench.objectives.replaced_token import ReplacedToken
from smallbench.recipes import RECIPES
from tests.train.tiny import VOCABULARY, take


def gradients(recipe: str, *, recompute: bool):
    """The loss and all gradients of one batch with dropout, and how much the graph keeps."""
    config = RECIPES[recipe]()
    model = replace(
        config.model,
        vocab_size=VOCABULARY.size,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    kinds = {MaskedLMConfig: MaskedLM, ReplacedTokenConfig: ReplacedToken}
    torch.manual_seed(0)
    objective = kinds[type(config.objective)](config.objective, model, VOCABULARY)
    if recompute:
        checkpoint_activations(objective)
        encoders = [part for part in objective.modules() if isinstance(part, Encoder)]
        assert all(encoder.checkpoint_activations for encoder in encoders)
    (batch,) = micro_batches(objective.corrupt(take(0, 8), step_generator(0, 0)), 8)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = objective(batch)
        num_bytes = sum(kept.values())
        loss = sum(sums.losses.values())
    loss.backward()
    parameters = dict(objective.named_parameters())
    return loss, {name: p.grad for name, p in parameters.items()}, num_bytes


@pytest.mark.parametrize(
    "recipe",
    [
        "bert-tiny",
        "roberta-tiny",
        "deberta-tiny",
        "electra-tiny",
        "electra-deberta-tiny",
        "modern-tiny",
    ],
)
def test_gradients_are_the_same_bit_for_bit_and_less_is_kept(recipe):
    loss, plain, num_bytes = gradients(recipe, recompute=False)
    again, recomputed, fewer_bytes = gradients(recipe, recompute=True)
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name
    assert fewer_bytes < 0.8 * num_bytes


def test_every_architecture_is_covered():
    assert set(ARCHITECTURES) == {"bert", "roberta", "deberta", "electra", "roformer"}
