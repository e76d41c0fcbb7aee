"""A compiled objective: the eager one's numbers, and no compilation for another number of targets.

`backend="eager"` and `"aot_eager"` run what a compiler would be given, without its minutes.
"""

import pytest
import torch
from torch._dynamo.utils import counters

from smallbench.pretraining.run_data import batches_of, fit_to_data, open_data
from smallbench.train.build import build_objective, vocabulary_of
from tests.pretraining.test_recipes import small

NUM_BATCHES = 200


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def prepared(family, corpus, **values):
    """An objective, and the batch source of a run."""
    found = open_data(corpus, None)
    config = fit_to_data(small(family, **values), found)
    torch.manual_seed(0)
    objective = build_objective(config, vocabulary_of(found.rows.tokenizer))
    return objective, batches_of(config, found, objective, num_rows=8, num_processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_two_hundred_batches_of_a_corpus_compile_once_for_full_and_once_for_padded_rows(
    family, corpus
):
    objective, source = prepared(family, corpus)
    take, pad_id = source._take, objective.vocabulary.pad_id

    def with_short_rows(start, count):
        ids_BL, num_pads = take(start, count).copy(), start // count % 12
        ids_BL[0, ids_BL.shape[1] - 2 * num_pads :] = pad_id
        return ids_BL

    source._take = with_short_rows
    objective.train()
    objective.compile(backend="eager")
    position, sizes, are_padded = 0, set(), set()
    for _ in range(NUM_BATCHES):
        [batch], position = source.read(position)
        objective(batch)
        sizes.add(batch.target_ids.numel())
        are_padded.add(batch.attention_mask is not None)
    assert len(sizes) > 5
    assert are_padded == {False, True}
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "family", ["bert", pytest.param("electra-deberta", marks=pytest.mark.slow)]
)
def test_a_compiled_objective_has_the_loss_and_the_gradients_of_the_eager_one(family, corpus):
    """Without dropout, whose numbers a compiler may draw in another order."""
    none = {"model__hidden_dropout_prob": 0.0, "model__attention_probs_dropout_prob": 0.0}
    found = []
    for is_compiled in (False, True):
        objective, source = prepared(family, corpus, **none)
        objective.train()
        if is_compiled:
            objective.compile(backend="aot_eager")
        position = 0
        for _ in range(2):
            [batch], position = source.read(position)
            sums = objective(batch)
            sum(sums.losses.values()).backward()
        gradients = {name: p.grad for name, p in objective.named_parameters()}
        found.append((sums, gradients))
    (eager, expected), (compiled, gradients) = found
    for name, loss in eager.losses.items():
        torch.testing.assert_close(compiled.losses[name], loss, rtol=1e-5, atol=1e-5)
    for name, (_, count) in eager.counts.items():
        assert compiled.counts[name][1] == count, name
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5)
