"""DeepSpeed's engine obeys the laws of the plain one, whatever it cuts, rounds or offloads.

In processes of one machine's CPU: its GPU paths are `test_gpu.py`'s.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")

from smallbench.errors import DivergedError, UnavailableError
from smallbench.objectives.config import ReplacedTokenConfig
from smallbench.objectives.replaced_token import ReplacedToken
from smallbench.train.compiled_ops import VARIABLE, compiled_ops, op_errors_explained, ops_directory
from smallbench.train.config import AdamWConfig
from smallbench.train.deepspeed_engine import (
    DeepSpeedEngine,
    can_pin,
    require_deepspeed,
)
from smallbench.train.engine import TorchEngine
from smallbench.train.optim import MOMENTS
from smallbench.train.processes import join_processes
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Progress, evaluate
from tests.train.test_trainer import Poison
from tests.train.tiny import VOCABULARY, Losses, objective, trainer

CPU = torch.device("cpu")
OPTIM = AdamWConfig(learning_rate=1e-3)


def learning_rate(progress: Progress) -> float:
    """Small enough that a difference in rounding does not grow to another trajectory."""
    return OPTIM.learning_rate * linear_decay(progress.step, total=20, warmup=2)


STAGES = [(0, "none"), (1, "none"), (2, "optimizer"), (3, "parameters")]
"""One case a stage, which the default run has."""

OTHERS = [(1, "optimizer"), (2, "none"), (3, "none"), (3, "optimizer")]
KINDS = [*STAGES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
OFFLOADED = [(2, "optimizer"), *(pytest.param(k, marks=pytest.mark.slow) for k in STAGES[::3])]


def replaced_token(*, dropout: float = 0.0) -> ReplacedToken:
    config = replace(objective(dropout=dropout).model.config, num_attention_heads=4)
    torch.manual_seed(0)
    return ReplacedToken(ReplacedTokenConfig(), config, VOCABULARY)


OBJECTIVES = {"masked_lm": objective, "replaced_token": replaced_token}


def deepspeed_engine(made, precision="fp32", *, stage=2, offload="none"):
    return DeepSpeedEngine(
        made,
        OPTIM,
        device=CPU,
        precision=precision,
        processes=join_processes(CPU, needs_group=True),
        offload=offload,
        zero_stage=stage,
        micro_batch_size=8,
    )


def trained(kind=None, *, name="masked_lm", precision="fp32", dropout=0.0, **arguments):
    """A trainer after its run, and its losses; `kind` is a stage and an offload, or plain torch."""
    losses = Losses()
    made = trainer(callbacks=[losses], precision=precision, **arguments)
    made.learning_rate = learning_rate
    made.objective = OBJECTIVES[name](dropout=dropout)
    made.batches._corrupt = made.objective.corrupt
    if kind is None:
        made.engine = TorchEngine(made.objective, OPTIM, device=CPU, precision=precision)
    else:
        stage, offload = kind
        made.engine = deepspeed_engine(made.objective, precision, stage=stage, offload=offload)
    assert made.run()
    return made, losses


TOLERANCE = {
    # Sums in another order, and DeepSpeed's CPU Adam divides where torch's multiplies: measured
    # after 20 steps were 2e-7 of the loss and 7e-7 of the norm.
    "fp32": {"loss": 1e-6, "norm": 1e-5},
    # bf16 has 8 bits: a rounded weight is off by 2⁻⁹ of itself, and from stage 1 on weights and the
    # residual stream are rounded, which autocast keeps in float32. Measured were 1e-4 of the loss
    # and 1e-3 of the norm; a lost micro-batch changes norms by far more, see below.
    "bf16": {"loss": 1e-3, "norm": 1e-2},
}


@cache
def plain(name, precision, micro_batch_size):
    """The losses of plain torch."""
    return trained(name=name, precision=precision, micro_batch_size=micro_batch_size)[1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("name", "precision", "micro_batch_size"),
    [
        ("masked_lm", "fp32", 2),
        pytest.param("masked_lm", "bf16", 8, marks=pytest.mark.slow),
        pytest.param("replaced_token", "fp32", 8, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
        pytest.param("replaced_token", "bf16", 2, marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_agree_with_the_plain_engine(name, precision, micro_batch_size, kind):
    """DeepSpeed before 0.19 lost all gradients but the last micro-batch's when it offloaded."""
    _, losses = trained(kind, name=name, precision=precision, micro_batch_size=micro_batch_size)
    expected = plain(name, precision, micro_batch_size)
    tolerance = TOLERANCE[precision]
    assert losses.losses == pytest.approx(expected.losses, rel=tolerance["loss"])
    assert losses.grad_norms == pytest.approx(expected.grad_norms, rel=tolerance["norm"])


def test_the_laws_above_would_notice_a_lost_micro_batch():
    """Their tolerance is far below what that would change."""
    made = trainer(micro_batch_size=2)
    made.learning_rate = learning_rate
    made.engine = TorchEngine(made.objective, OPTIM, device=CPU, precision="fp32")
    backward, norms = made.engine.backward, Losses()

    def lose(loss, *, is_last):
        if is_last:
            made.engine.discard_gradients()
        backward(loss, is_last=is_last)

    made.engine.backward, made.callbacks = lose, [norms]
    made.run()
    right = plain("masked_lm", "fp32", 2).grad_norms
    off = [abs(a - b) / b for a, b in zip(norms.grad_norms, right, strict=True)]
    assert min(off) > TOLERANCE["bf16"]["norm"]


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize("kind", OFFLOADED, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(precision, kind):
    _, whole = trained(kind, precision=precision, dropout=0.1)
    first, before = trained(kind, precision=precision, dropout=0.1, num_steps=7)
    weights = {name: weight.clone() for name, weight in first.engine.weights().items()}
    state = first.engine.state_dict()
    assert {kept["step"].item() for kept in state["optimizer"]["states"].values()} == {7}
    generator = torch.get_rng_state()

    after = Losses()
    second = trainer(callbacks=[after], progress=Progress(**first.progress.state_dict()))
    second.learning_rate = learning_rate
    second.objective = objective(dropout=0.1, seed=5)  # other weights, before the checkpoint's
    second.engine = deepspeed_engine(second.objective, precision, stage=kind[0], offload=kind[1])
    second.engine.load_weights(weights)
    second.engine.load_state_dict(state)
    torch.set_rng_state(generator)
    second.run()
    assert before.losses + after.losses == whole.losses
    assert before.grad_norms + after.grad_norms == whole.grad_norms


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_weights_and_moments_go_from_engine_to_engine_unchanged(kind):
    """What is exported is the same, and a run may continue with another engine."""
    source, _ = trained(num_steps=3)
    weights, state = source.engine.weights(), source.engine.state_dict()
    other = deepspeed_engine(objective(seed=1), "bf16", stage=kind[0], offload=kind[1])
    other.load_weights(weights)
    other.load_state_dict(state)
    back = TorchEngine(objective(seed=2), OPTIM, device=CPU, precision="fp32")
    back.load_weights(other.weights())
    back.load_state_dict(other.state_dict())
    assert back.weights().keys() == weights.keys()
    assert all(torch.equal(back.weights()[name], weight) for name, weight in weights.items())
    returned = back.state_dict()["optimizer"]["states"]
    for name, kept in state["optimizer"]["states"].items():
        assert returned[name]["step"] == 3
        assert all(torch.equal(returned[name][moment], kept[moment]) for moment in MOMENTS), name


@pytest.mark.parametrize("kind", [(2, "optimizer"), (3, "parameters")], ids=str)
def test_a_save_copies_nothing_that_is_in_the_hosts_memory_already(kind):
    engine = trained(kind, num_steps=1)[0].engine
    tensors = list(engine.weights().values())
    for state in engine.state_dict()["optimizer"]["states"].values():
        tensors += [state[moment] for moment in MOMENTS]
    own = [*engine._masters()]
    own += [v for s in engine._adam.state.values() for v in s.values() if torch.is_tensor(v)]
    places = {tensor.untyped_storage().data_ptr() for tensor in own}
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} <= places


@pytest.mark.parametrize("kind", [None, *OFFLOADED], ids=str)
def test_a_non_finite_gradient_skips_the_update_and_too_many_end_the_run(kind):
    made, _ = trained(kind, num_steps=2)
    before = {name: weight.clone() for name, weight in made.engine.weights().items()}
    made.budget = replace(made.budget, max_steps=20)
    made.max_nonfinite_steps = 3
    made.callbacks = [Poison(made, range(3, 20))]
    made.objective.weights = {"mlm": math.nan}
    with pytest.raises(DivergedError, match="3 steps in a row"):
        made.run()
    assert made.progress.num_skipped_steps == 3
    after = made.engine.weights()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("kind", OFFLOADED, ids=str)
def test_evaluation_agrees_and_changes_nothing(kind):
    made, _ = trained(kind, num_steps=2)
    other, _ = trained(num_steps=2)
    batches, _ = made.batches.read(0)
    found = evaluate(made.objective, made.engine, batches)
    assert found == pytest.approx(evaluate(other.objective, other.engine, batches), abs=1e-5)
    made.budget = other.budget = replace(made.budget, max_steps=3)
    assert made.run()
    assert other.run()
    assert made.engine.weights().keys() == other.engine.weights().keys()


@pytest.mark.parametrize("kind", STAGES[-1:], ids=str)
def test_an_engine_leaves_pytorch_as_it_was_for_everybody_else(kind):
    """ZeRO-3 replaces a function of PyTorch's; runs of plain torch after it ended elsewhere."""
    before, linear = trained(precision="bf16", num_steps=3)[1], torch.nn.functional.linear
    trained(kind, precision="bf16", num_steps=1)
    assert torch.nn.functional.linear is linear
    assert trained(precision="bf16", num_steps=3)[1].losses == before.losses


def test_an_engine_with_autocast_does_not_change_a_later_one(monkeypatch):
    accelerator = pytest.importorskip("deepspeed.accelerator").get_accelerator()
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: True)  # refused as slow on CPUs
    before = trained((2, "optimizer"), num_steps=4)[1]
    deepspeed_engine(objective(), "fp16", stage=0)
    after = trained((2, "optimizer"), num_steps=4)[1]
    assert after.losses == before.losses
    assert after.grad_norms == before.grad_norms


PROGRAM = """
import json, torch
from tests.train.test_deepspeed_engine import trained
made, losses = trained((2, "optimizer"), num_steps=3)
print(json.dumps(losses.losses))
"""


def start(**environment):
    """A plain `python` in an environment without MPI or a launcher."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI", "PMI", "SLURM"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        clean.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )


@pytest.mark.slow
def test_a_plain_start_needs_no_launcher_and_stdout_holds_the_results_alone():
    losses = json.loads(start().stdout)
    assert losses == pytest.approx(trained(num_steps=3)[1].losses, abs=1e-4)


@pytest.mark.slow
def test_ops_are_compiled_once_and_the_lock_of_a_dead_process_does_not_block(tmp_path):
    start()  # compiles them, if nothing has yet
    ops = shutil.copytree(ops_directory(), tmp_path / "ops")
    compiled = {path: path.stat().st_mtime_ns for path in ops.rglob("*.so")}
    assert any("cpu_adam" in path.name for path in compiled)
    for directory in ops.glob("*/"):
        (directory / "lock").touch()  # as a build that was killed leaves it
    start(**{VARIABLE: str(ops)})
    assert {path: path.stat().st_mtime_ns for path in ops.rglob("*.so")} == compiled
    assert not list(ops.glob("*/lock"))


def test_ops_are_in_the_given_folder_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert ops_directory() == tmp_path
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("SMALLBENCH_CACHE", str(tmp_path / "cache"))
    assert ops_directory().is_relative_to(tmp_path / "cache")


def test_ninja_is_found_beside_a_python_that_was_not_activated(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with compiled_ops():
        assert shutil.which("ninja") == str(Path(sys.executable).parent / "ninja")


def test_a_version_that_loses_gradients_is_refused(monkeypatch):
    import deepspeed

    monkeypatch.setattr(deepspeed, "__version__", "0.18.9")
    with pytest.raises(UnavailableError, match=r"deepspeed>=0\.19\.5"):
        require_deepspeed()


# Loss scales


def engine_of(kind, precision):
    if kind is None:
        return TorchEngine(objective(), OPTIM, device=CPU, precision=precision)
    return deepspeed_engine(objective(), precision, stage=kind[0], offload=kind[1])


def scale_of(engine):
    return engine.state_dict()["scaler"].get("scale")


SCALED = [None, STAGES[0], STAGES[2], STAGES[3]]
PAIRS = [
    pytest.param(
        first, last, precision,
        # In a circle by default: each engine gives once and takes once.
        marks=[] if precision == "fp16" and j == (i + 1) % 4 else pytest.mark.slow,
    )
    for precision in ("fp16", "bf16")
    for i, first in enumerate(SCALED)
    for j, last in enumerate(SCALED)
]  # fmt: skip


@pytest.mark.parametrize(("first", "last", "precision"), PAIRS, ids=str)
def test_a_checkpoint_goes_from_each_engine_to_each_other(first, last, precision, monkeypatch):
    """Also before the first step, and with a loss scale that is not the initial one."""
    accelerator = pytest.importorskip("deepspeed.accelerator").get_accelerator()
    # DeepSpeed refuses fp16 on CPUs because it is slow there; its code path is the same.
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: True)
    source, target = engine_of(first, precision), engine_of(last, precision)
    state = source.state_dict()
    if precision == "fp16":
        # DeepSpeed has it under a second name.
        scales = {"scale", "cur_scale"} & state["scaler"].keys()
        state["scaler"] = {**state["scaler"], **dict.fromkeys(scales, 512.0)}
    target.load_weights(source.weights())
    target.load_state_dict(state)
    assert scale_of(target) == (512.0 if precision == "fp16" else None)


def test_memory_that_cannot_be_pinned_is_said(capsys, monkeypatch):
    def refuse(*arguments, **named):
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(torch, "empty", refuse)
    assert not can_pin(6 * 2**30)
    said = capsys.readouterr().err
    assert "warning: 6.0 GiB of the host's memory cannot be page-locked (CUDA error: out of" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", r"install a C\+\+ compiler \('no-such-compiler' cannot be found"),
        (sys.executable, "delete .*, so that it is compiled again"),
    ],
)
def test_an_op_that_cannot_be_compiled_or_loaded_is_one_sentence(monkeypatch, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    problem = "cpu_adam.so: undefined symbol: _ZN3c10\nmore"
    with pytest.raises(UnavailableError, match=said) as caught, op_errors_explained():
        raise ImportError(problem)
    assert "(cpu_adam.so: undefined symbol: _ZN3c10)" in str(caught.value)
    assert "--train.engine=torch" in str(caught.value)


@pytest.mark.slow
def test_without_a_compiler_offloading_ends_in_a_sentence(tmp_path):
    values = {VARIABLE: str(tmp_path), "CXX": "no-such-compiler"}
    with pytest.raises(subprocess.CalledProcessError) as caught:
        start(**values)
    last = caught.value.stderr.strip().splitlines()[-1]
    assert "UnavailableError: DeepSpeed cannot compile or load its C++ operators" in last
    assert "no-such-compiler" in last
