"""Whole runs with either engine, on one process and on two, in enough memory and in too little."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from smallbench.checkpoints.store import CheckpointStore
from smallbench.config import to_dict
from smallbench.errors import ConfigError, InterruptedRunError, UnavailableError
from smallbench.files import write_json
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.pretraining import machine as machine_module
from smallbench.pretraining.pretrain import pretrain
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.config import TrainConfig
from smallbench.train.engine import EngineChoice, TorchEngine, choose_engine
from smallbench.train.memory import is_out_of_memory
from smallbench.train.processes import Processes
from tests.pretraining.test_pretrain import StopAfter, outcome, tiny

OFFLOADED = {"train__engine": "deepspeed", "train__offload": "optimizer"}


def losses_of(run_dir):
    return [r["loss"] for r in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("values", [OFFLOADED, {**OFFLOADED, "train__offload": "parameters"}])
def test_an_interrupted_deepspeed_run_equals_an_uninterrupted_one(corpus, tmp_path, values):
    pytest.importorskip("deepspeed")
    config = tiny(**values, train__max_steps=60, train__micro_batch_size=4)
    pretrain(config, data=corpus, run_dir=tmp_path / "whole")
    for _ in range(2):  # asked twice a step
        with pytest.raises(InterruptedRunError):
            pretrain(config, data=corpus, run_dir=tmp_path / "run", stop=StopAfter(51))
    pretrain(config, data=corpus, run_dir=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_continues_with_another_engine(corpus, tmp_path):
    pytest.importorskip("deepspeed")
    plain = tiny(train__max_steps=12, train__precision="fp32")
    pretrain(plain, data=corpus, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        pretrain(plain, data=corpus, run_dir=tmp_path / "run", stop=StopAfter(5))
    values = {**OFFLOADED, "train__precision": "fp32"}
    pretrain(tiny(train__max_steps=12, **values), data=corpus, run_dir=tmp_path / "run")
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-3)
    attempts = json.loads((tmp_path / "run" / "run.json").read_text())["attempts"]
    assert [attempt["engine"]["engine"] for attempt in attempts] == ["torch", "deepspeed"]


def test_what_is_chosen_of_what_was_asked():
    def choice(**values):
        return choose_engine(TrainConfig(**values))

    assert choice() == choice(engine="torch") == choice(offload="none") == EngineChoice()
    assert choice(offload="optimizer") == EngineChoice("deepspeed", "optimizer")
    assert choice(zero_stage=1) == EngineChoice("deepspeed", "none", 1)
    assert choice(engine="deepspeed") == EngineChoice("deepspeed", "none")
    for wrong in (
        {"engine": "torch", "offload": "optimizer"},
        {"offload": "optimizer", "zero_stage": 0},
        {"offload": "parameters", "zero_stage": 2},
        {"zero_stage": 4},
        {"engine": "deepspeed", "compile": True},
        {"offload": "optimizer", "compile": True},
    ):
        with pytest.raises(ConfigError):
            TrainConfig(**wrong)


def command(*arguments):
    return [sys.executable, "-m", "smallbench.jobs.cli", "pretrain", *map(str, arguments)]


def config_file(folder, config):
    """The recipe's values as a file for --config."""
    write_json(folder / "config.yaml", {k: v for k, v in to_dict(config).items() if k != "recipe"})
    return folder / "config.yaml"


@pytest.mark.slow
def test_a_killed_run_with_offload_equals_an_uninterrupted_one(corpus, tmp_path):
    pytest.importorskip("deepspeed")
    config = tiny(**OFFLOADED, train__max_steps=200, train__save_every_steps=20)
    file = config_file(tmp_path, config)
    pretrain(config, data=corpus, run_dir=tmp_path / "whole")
    started = command(
        "bert-tiny", f"--config={file}", f"--data={corpus}", f"--run_dir={tmp_path / 'run'}"
    )
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    store, end = CheckpointStore(tmp_path / "run"), time.monotonic() + 300
    while not store.steps() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert max(store.steps()) < 200
    subprocess.run(started, check=True, stdout=subprocess.DEVNULL)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"train__engine": "deepspeed", "train__zero_stage": 2}])
def test_two_processes_do_the_steps_of_one(corpus, tmp_path, values):
    config = tiny(
        train__max_steps=12,
        train__precision="fp32",
        train__micro_batch_size=2,
        model__hidden_dropout_prob=0.0,
        model__attention_probs_dropout_prob=0.0,
        **values,
    )
    file = config_file(tmp_path, config)
    pretrain(config, data=corpus, run_dir=tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = command(
        "bert-tiny", f"--config={file}", f"--data={corpus}", f"--run_dir={tmp_path / 'two'}"
    )[1:]
    for steps in (6, 12):  # the second time it goes on
        done = subprocess.run(
            [*launch, *arguments, f"--train.milestones={steps}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert two == pytest.approx(one, abs=1e-4)
    attempts = json.loads((tmp_path / "two" / "run.json").read_text())["attempts"]
    assert [attempt["num_devices"] for attempt in attempts] == [2, 2]


def test_processes_that_cannot_share_a_batch_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "join_processes", lambda *_, **__: Processes(0, 3))
    monkeypatch.setattr(Processes, "first_of", lambda self, value: value)
    with pytest.raises(ConfigError, match="cannot be shared by 3 processes"):
        pretrain(tiny(), data=corpus, run_dir=tmp_path)


class Small:
    """A device with room for so many rows of a forward pass; for more it raises as PyTorch does."""

    def __init__(self, monkeypatch, num_rows, *, from_step=0, during_update=False):
        self.sizes, self.num_updates = [], 0
        forward, step = TorchEngine.forward, TorchEngine.step

        def full():
            return self.num_updates >= from_step and self.sizes[-1] > num_rows

        def small_forward(engine, batch):
            if engine.module.training:
                self.sizes.append(batch.num_rows)
                if full() and not during_update:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return forward(engine, batch)

        def small_step(engine, *, learning_rate):
            if full() and during_update:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            self.num_updates += 1
            return step(engine, learning_rate=learning_rate)

        monkeypatch.setattr(TorchEngine, "forward", small_forward)
        monkeypatch.setattr(TorchEngine, "step", small_step)


@pytest.mark.parametrize(
    ("from_step", "during_update"),
    [
        pytest.param(0, False, id="first step, in a pass"),
        pytest.param(0, True, id="first step, in the update", marks=pytest.mark.slow),
        pytest.param(11, False, id="step 11, in a pass", marks=pytest.mark.slow),
        pytest.param(11, True, id="step 11, in the update"),
    ],
)
def test_without_memory_a_run_goes_on_with_smaller_micro_batches(
    corpus, tmp_path, monkeypatch, capsys, from_step, during_update
):
    plain = {"model__hidden_dropout_prob": 0.0, "model__attention_probs_dropout_prob": 0.0}
    config = tiny(**plain, train__precision="fp32")
    pretrain(config, data=corpus, run_dir=tmp_path / "roomy")
    small = Small(monkeypatch, 3, from_step=from_step, during_update=during_update)
    pretrain(config, data=corpus, run_dir=tmp_path / "small")
    assert "out of memory with 8 rows at a time; continuing with 4" in capsys.readouterr().err
    assert small.sizes[-1] == 2
    assert losses_of(tmp_path / "small") == pytest.approx(losses_of(tmp_path / "roomy"), abs=1e-4)
    # The next start knows it.
    pretrain(config, data=corpus, run_dir=tmp_path / "small")
    store = CheckpointStore(tmp_path / "small")
    assert store.newest().manifest["micro_batch"] == {"asked": 8, "size": 2}


def test_where_not_even_one_row_fits_the_run_ends_with_a_remedy(corpus, tmp_path, monkeypatch):
    Small(monkeypatch, 0)
    with pytest.raises(UnavailableError, match="1 rows of 32 tokens at a time do not fit"):
        pretrain(tiny(), data=corpus, run_dir=tmp_path)


def test_the_allocators_own_words_are_understood():
    """The host's has no error class; 2⁵⁰ bytes are more than a process can address."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("expected a matrix"))


class AcceleratorError(RuntimeError):
    """As CUDA's errors come: a class of their own, with CUDA's number."""

    def __init__(self, text, error_code):
        super().__init__(text)
        self.error_code = error_code


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (AcceleratorError("CUDA error: (in another language)", 2), True),
        (AcceleratorError("CUDA error: an illegal memory access was encountered", 700), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (MemoryError(), True),
        (ValueError("CUDA error: out of memory"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_failed_allocation_is_distinguished_from_other_errors(error, is_memory):
    assert is_out_of_memory(error) == is_memory


def test_held_out_rows_that_do_not_fit_are_evaluated_in_smaller_batches(
    corpus, tmp_path, monkeypatch
):
    """The record of the step is not lost, and nothing of the training changes."""
    pretrain(tiny(train__max_steps=12), data=corpus, run_dir=tmp_path / "roomy")
    plain, sizes = MaskedLM.forward, []

    def hungry(self, batch):
        if not self.training and sizes.append(batch.num_rows) is None and batch.num_rows > 4:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return plain(self, batch)

    monkeypatch.setattr(MaskedLM, "forward", hungry)
    pretrain(tiny(train__max_steps=12), data=corpus, run_dir=tmp_path / "small")
    assert sizes[:2] == [8, 4]
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["event"] == "eval"]
        for name in ("small", "roomy")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    assert len(losses[0]) == 3


def test_hours_end_a_run_and_more_of_them_continue_it(corpus, tmp_path, capsys):
    config = tiny(train__max_steps=100_000, train__max_hours=1 / 3600)
    pretrain(config, data=corpus, run_dir=tmp_path)
    step = CheckpointStore(tmp_path).newest().step
    assert 0 < step < 100_000
    assert "the same command with a larger --max_hours continues" in capsys.readouterr().err
    pretrain(
        tiny(train__max_steps=100_000, train__max_hours=1.5 / 3600), data=corpus, run_dir=tmp_path
    )
    assert CheckpointStore(tmp_path).newest().step > step


def test_a_schedule_along_hours_decays_fully_and_belongs_to_the_run(corpus, tmp_path):
    values = {"schedule__along": "hours", "train__max_hours": 3 / 3600, "train__max_steps": 3}
    with pytest.raises(InterruptedRunError, match=r"saved at step \d+; the same"):
        pretrain(tiny(**values), data=corpus, run_dir=tmp_path, stop=StopAfter(5))
    with pytest.raises(ConfigError, match=r"train\.max_hours"):
        pretrain(tiny(**values | {"train__max_hours": 9.0}), data=corpus, run_dir=tmp_path)
    pretrain(tiny(**values), data=corpus, run_dir=tmp_path)
    last = read_metrics(tmp_path / "metrics.jsonl")[-2]
    assert last["event"] == "train"
    assert last["learning_rate"] < 0.5 * tiny().optim.learning_rate  # a slow step is a large part
    assert last["train_seconds"] >= 3
    assert last["eta_seconds"] == 0
    assert not math.isnan(last["loss"])


def test_a_growing_batch_and_a_falling_masking_rate_survive_an_interruption(corpus, tmp_path):
    values = {
        "schedule__initial_batch_size": 2,
        "train__micro_batch_size": 2,
        "objective__mask_fraction": 0.4,
        "objective__final_mask_fraction": 0.1,
    }
    pretrain(tiny(**values), data=corpus, run_dir=tmp_path / "whole")
    for num_steps in (5, 9):
        with pytest.raises(InterruptedRunError):
            pretrain(
                tiny(**values),
                data=corpus,
                run_dir=tmp_path / "run",
                stop=StopAfter(4 * num_steps),
            )
    pretrain(tiny(**values), data=corpus, run_dir=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    tokens = [
        r["tokens"]
        for r in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if r["event"] == "train"
    ]
    assert tokens[0] < 5 * 4 * 32 < 5 * 8 * 32 * 0.9 < tokens[-1] - tokens[-2] + 32 * 8
