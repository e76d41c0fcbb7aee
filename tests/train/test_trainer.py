"""The laws of the training loop."""

import math
from itertools import pairwise

import pytest
import torch

from smallbench.errors import DivergedError
from smallbench.stop import Stop
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Callback, Progress, count_targets, evaluate
from tests.train.tiny import Losses, objective, take, trainer

# Recorded on an AVX-512 CPU with torch 2.13; another CPU may differ in the last digits.
GOLDEN = {
    "fp32": [
        4.868292,
        4.880732,
        4.792766,
        4.836757,
        4.821878,
        4.767188,
        4.701476,
        4.709312,
        4.837413,
        4.58218,
        4.624487,
        4.603093,
        4.684927,
        4.560159,
        4.749183,
        4.882843,
        4.595023,
        4.524589,
        4.649922,
        4.5444,
    ],
    "bf16": [
        4.868411,
        4.880878,
        4.793422,
        4.837716,
        4.821466,
        4.767457,
        4.701829,
        4.709659,
        4.836747,
        4.583275,
        4.624839,
        4.60272,
        4.683904,
        4.559128,
        4.750506,
        4.882657,
        4.594597,
        4.522385,
        4.650688,
        4.544352,
    ],
}


def run(**arguments):
    losses = Losses()
    made = trainer(callbacks=[losses], **arguments)
    assert made.run()
    return made, losses


@pytest.mark.parametrize("precision", GOLDEN)
def test_losses_of_twenty_steps_are_golden(precision):
    _, losses = run(precision=precision)
    tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
    assert losses.losses == pytest.approx(GOLDEN[precision], abs=tolerance)


def test_training_learns():
    _, losses = run()
    assert losses.losses[0] == pytest.approx(math.log(128), abs=0.1)
    assert losses.losses[-1] < losses.losses[0] - 0.3


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_micro_batches_equal_one_batch_although_their_masks_are_uneven(micro_batch_size):
    whole, expected = run()
    parts, found = run(micro_batch_size=micro_batch_size)
    steps = [parts.batches.read(position)[0] for position in range(0, 160, 8)]
    counts = [{batch.target_ids.numel() / batch.num_rows for batch in step} for step in steps]
    assert any(len(set_) > 1 for set_ in counts), "uneven masks, else this test says nothing"
    # Float32 sums in another order; an average of averages is off by more than 1e-3 here.
    assert found.losses == pytest.approx(expected.losses, abs=2e-4)
    assert found.grad_norms[0] == pytest.approx(expected.grad_norms[0], rel=1e-5)
    assert parts.progress.num_tokens == whole.progress.num_tokens


def test_average_of_micro_batch_means_would_be_another_loss():
    """The bug that the law above guards against is visible on this data."""
    made = trainer(micro_batch_size=1)
    micro_batches, _ = made.batches.read(0)
    totals = count_targets(made.objective, micro_batches)
    sums = [made.objective(batch).losses["mlm"].item() for batch in micro_batches]
    counts = [batch.target_ids.numel() for batch in micro_batches]
    right = sum(sums) / totals["mlm"]
    wrong = sum(s / c for s, c in zip(sums, counts, strict=True)) / len(sums)
    assert abs(right - wrong) > 1e-3


def test_progress_counts_steps_samples_and_tokens():
    made, _ = run(num_steps=5)
    assert made.progress.step == 5
    assert made.progress.position == 40
    assert made.progress.num_tokens == int((take(0, 40) != 0).sum())
    assert made.progress.train_seconds > 0


def test_should_stop_ends_after_a_whole_step():
    losses = Losses()
    made = trainer(callbacks=[losses], stop=Stop(lambda: len(losses.losses) == 3))
    assert made.run() is False
    assert made.progress.step == 3


class Poison(Callback):
    """Breaks the weights' gradients from a step on, by way of the loss."""

    def __init__(self, made, steps):
        self.made, self.steps = made, steps

    def after_step(self, progress, result):
        self.made.objective.weights = {"mlm": math.nan if progress.step in self.steps else 1.0}


def test_a_non_finite_gradient_skips_the_update_and_is_counted():
    made = trainer(num_steps=4)
    before = {}

    class Watch(Callback):
        def after_step(self, progress, result):
            before[progress.step] = [p.detach().clone() for p in made.objective.parameters()]
            assert result.skipped == (progress.step == 3)

    made.callbacks = [Poison(made, {2}), Watch()]
    assert made.run()
    assert all(torch.equal(a, b) for a, b in zip(before[2], before[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before[3], before[4], strict=True))
    assert made.progress.num_skipped_steps == 1
    assert made.progress.num_skipped_in_a_row == 0


@pytest.mark.parametrize(
    ("most", "said"), [(3, "in 3 steps in a row, .* step 5;"), (1, "in step 3;")]
)
def test_too_many_non_finite_steps_in_a_row_end_the_run(most, said):
    made = trainer(max_nonfinite_steps=most)
    made.callbacks = [Poison(made, range(2, 20))]
    with pytest.raises(DivergedError, match=said):
        made.run()
    assert made.progress.step == 2 + most


def test_a_run_that_continues_beyond_the_limit_ends_at_the_next_skipped_step():
    """A checkpoint may have been saved after the step that ended the run."""
    made = trainer(max_nonfinite_steps=3, progress=Progress(step=3, num_skipped_in_a_row=3))
    made.objective.weights = {"mlm": math.nan}
    with pytest.raises(DivergedError, match="4 steps in a row"):
        made.run()
    assert made.progress.step == 4


def test_callbacks_are_called_before_the_first_step_after_each_and_at_the_end():
    seen = []

    class Calls(Callback):
        def on_start(self, progress):
            seen.append(("start", progress.step))

        def after_step(self, progress, result):
            seen.append(("step", progress.step))

        def on_end(self, progress, *, is_done):
            seen.append(("end", progress.step, is_done))

    trainer(num_steps=2, callbacks=[Calls()]).run()
    assert seen == [("start", 0), ("step", 1), ("step", 2), ("end", 2, True)]


def test_the_engine_knows_the_last_micro_batch_of_each_step():
    made = trainer(num_steps=2, micro_batch_size=3)
    backward, seen = made.engine.backward, []

    def watched(loss, *, is_last):
        seen.append(is_last)
        backward(loss, is_last=is_last)

    made.engine.backward = watched
    assert made.run()
    assert seen == [False, False, True] * 2


def test_resumed_state_continues_bit_for_bit():
    """Weights, optimizer, position and dropout's generator carry over; nothing else is needed."""
    _, expected = run(dropout=0.1)
    first, before = run(dropout=0.1, num_steps=7)
    state = {
        "module": {k: v.clone() for k, v in first.objective.state_dict().items()},
        "engine": first.engine.state_dict(),
        "random": torch.get_rng_state(),
        "progress": Progress(**first.progress.state_dict()),
    }
    after = Losses()
    second = trainer(dropout=0.1, callbacks=[after], progress=state["progress"])
    second.objective.load_state_dict(state["module"])
    second.engine.load_state_dict(state["engine"])
    torch.set_rng_state(state["random"])
    second.run()
    assert before.losses + after.losses == expected.losses
    assert before.grad_norms + after.grad_norms == expected.grad_norms


def test_evaluation_changes_nothing():
    made = trainer(dropout=0.1)
    batches, _ = made.batches.read(0)
    random_before = torch.get_rng_state()
    a = evaluate(made.objective, made.engine, batches)
    b = evaluate(made.objective, made.engine, batches)
    assert a == b
    assert a.keys() == {"mlm_loss", "accuracy"}
    assert torch.equal(torch.get_rng_state(), random_before)
    assert made.objective.training


def test_schedule_rises_to_its_peak_and_decays_to_zero():
    factors = [linear_decay(s, total=100, warmup=10) for s in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1.0
    assert factors[100] == 0
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b for a, b in pairwise(factors[10:]))


def test_norms_and_biases_do_not_decay():
    made = trainer()
    decayed, kept = made.engine.optimizer.param_groups
    assert decayed["weight_decay"] > 0
    assert kept["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in kept["params"])
    count = len(decayed["params"]) + len(kept["params"])
    assert count == len(list(objective().parameters()))
