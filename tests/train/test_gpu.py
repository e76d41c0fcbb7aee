"""The CUDA path: the same laws in bf16 and in fp16 with loss scaling."""

import pytest
import torch

from smallbench.train.callbacks import evaluate
from smallbench.train.config import OptimConfig
from smallbench.train.engine import TorchEngine, load_loss_scale
from smallbench.train.memory import MemoryExhaustedError
from smallbench.train.precision import assert_compiled_for, matrix_peak_flops
from smallbench.train.processes import join_processes
from smallbench.train.trainer import Trainer
from tests.train.tiny import Losses, objective, trainer

pytestmark = pytest.mark.gpu

PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="bf16 is emulated before Ampere"))]  # fmt: skip


def on_gpu(precision: str, *, num_steps: int = 20) -> tuple[Trainer, Losses]:
    losses = Losses()
    made = trainer(num_steps=num_steps, callbacks=[losses])
    optim = OptimConfig(learning_rate=1e-2)
    made.objective = objective()
    made.engine = TorchEngine(
        made.objective, optim, device=torch.device("cuda"), precision=precision
    )
    return made, losses


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_follow_those_of_the_cpu(precision):
    expected = Losses()
    trainer(callbacks=[expected]).run()
    made, losses = on_gpu(precision)
    assert made.run()
    # fp16 may skip its first steps until the loss scale fits.
    tolerance = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-1}[precision]
    assert losses.losses == pytest.approx(expected.losses, abs=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_scale_belongs_to_the_state(precision):
    made, _ = on_gpu(precision, num_steps=3)
    if precision == "fp16":
        load_loss_scale(made.engine.scaler, {"scale": 128.0})
    made.run()
    state = made.engine.state_dict()
    assert bool(state["scaler"]) == (precision == "fp16")
    again, _ = on_gpu(precision)
    again.engine.load_state_dict(state)
    assert again.engine.scaler.get_scale() == made.engine.scaler.get_scale()


def test_evaluation_draws_nothing():
    made, _ = on_gpu("fp32", num_steps=1)
    batches, _ = made.batches.read(0)
    before = torch.cuda.get_rng_state()
    evaluate(made.objective, made.engine, batches)
    matrix_peak_flops(torch.device("cuda"), "fp32", seconds=0.05)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_this_torch_is_built_for_this_gpu():
    assert_compiled_for(torch.device("cuda"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [(0, "none"), (2, "optimizer"), (3, "parameters")], ids=str)
def test_deepspeed_follows_the_plain_engine(precision, kind):
    pytest.importorskip("deepspeed")
    from smallbench.train.deepspeed_engine import DeepSpeedEngine

    device, (stage, offload) = torch.device("cuda"), kind
    _, expected = run_on_gpu(precision)
    made, losses = on_gpu(precision)
    made.objective = objective()
    made.engine = DeepSpeedEngine(
        made.objective,
        OptimConfig(learning_rate=1e-2),
        device=device,
        precision=precision,
        processes=join_processes(device, needs_group=True),
        offload=offload,
        zero_stage=stage,
        micro_batch_size=8,
    )
    assert made.run()
    tolerance = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 1e-1}[precision]
    assert losses.losses == pytest.approx(expected.losses, abs=tolerance)


def run_on_gpu(precision: str) -> tuple[Trainer, Losses]:
    made, losses = on_gpu(precision)
    assert made.run()
    return made, losses


def test_a_card_that_is_too_small_is_noticed_and_the_step_undone():
    made, _ = on_gpu("fp32", num_steps=3)
    made.train_step()
    before = {name: weight.clone() for name, weight in made.engine.weights().items()}
    forward, hog = made.engine.forward, []

    def hungry(batch):
        hog.append(torch.empty(2**40, device="cuda"))  # four terabytes
        return forward(batch)

    made.engine.forward = hungry
    with pytest.raises(MemoryExhaustedError) as caught:
        made.train_step()
    assert caught.value.is_undone
    assert all(torch.equal(made.engine.weights()[name], weight) for name, weight in before.items())
    assert made.progress.step == 1
