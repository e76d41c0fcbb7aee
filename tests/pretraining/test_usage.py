"""What a run uses up is added up over its attempts, and what is unknown stays unknown."""

import json
import sys
import types

import pytest
import torch

from smallbench.errors import InterruptedRunError, UnavailableError
from smallbench.pretraining import usage as module
from smallbench.pretraining.pretrain import pretrain
from smallbench.pretraining.usage import (
    EnergyMeter,
    UsageMeter,
    nvml_meter,
    open_meter,
    summary,
    tdp_meter,
)
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.config import AccountingConfig
from smallbench.train.trainer import Progress
from tests.pretraining.test_pretrain import StopAfter, tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def attempt(progress, meter, *, device=GPU, price=2.0, size=1):
    clock = Clock()
    made = UsageMeter(
        progress,
        meter,
        device=device,
        num_devices=size,
        price_per_hour=price,
        clock=clock,
    )

    def spend(wall, train):
        clock.now += wall
        progress.train_seconds += train
        return made.update(progress)

    return spend


def test_attempts_add_up_whatever_counted_them():
    progress = Progress()
    spend = attempt(progress, tdp_meter(300.0))
    spend(1000, 900)
    spend(2600, 2700)
    assert progress.usage == {
        "wall_seconds": 3600,
        "gpu_active_seconds": 3600,
        "energy_kwh": pytest.approx(0.3),
        "energy_method": "tdp",
        "cost": pytest.approx(2.0),
    }
    again = Progress(**json.loads(json.dumps(progress.state_dict())))  # by way of a checkpoint
    meter = EnergyMeter("nvml", tdp_meter(100.0).kwh)
    attempt(again, meter, price=1.0, size=2)(3600, 1800)
    assert again.usage == {
        "wall_seconds": 7200,
        "gpu_active_seconds": 7200,
        "energy_kwh": pytest.approx(0.4),
        "energy_method": "nvml + tdp",
        "cost": pytest.approx(3.0),
    }


def test_a_value_unknown_in_one_attempt_is_neither_zero_nor_a_partial_sum():
    progress = Progress()
    attempt(progress, None, device=CPU, price=None)(60, 50)
    assert progress.usage["gpu_active_seconds"] is None
    assert progress.usage["energy_kwh"] is None
    assert progress.usage["cost"] is None
    assert progress.usage["wall_seconds"] == 60
    attempt(progress, tdp_meter(300.0))(60, 50)
    assert progress.usage["energy_kwh"] is None
    assert progress.usage["cost"] is None
    assert progress.usage["energy_method"] == "tdp + unknown"


class Nvml(types.ModuleType):
    """NVML as far as it is asked; `counters` in millijoules by handle."""

    class NVMLError(Exception):
        pass

    def __init__(self, counters):
        super().__init__("pynvml")
        self.counters = counters

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if self.counters[handle] is None:
            raise self.NVMLError("Not Supported")
        return self.counters[handle]


def test_the_counters_are_read_as_differences(monkeypatch):
    nvml = Nvml([5_000_000, 1_000])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = nvml_meter([0, 1])
    nvml.counters = [5_000_000 + 3_600_000, 1_000 + 3_600_000]
    assert meter.kwh(1.0) == pytest.approx(7200 / 3.6e6)


@pytest.mark.parametrize("counter", [0, None])
def test_a_card_without_a_counter_gets_another_method(monkeypatch, counter):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([counter]))
    with pytest.raises(UnavailableError, match="energy"):
        nvml_meter([0])
    monkeypatch.setattr(module, "_nvml_handles", lambda *_: [0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100-PCIE-16GB")
    assert open_meter("auto", GPU, 1).kwh(3600) == pytest.approx(0.25)
    with pytest.raises(UnavailableError):
        open_meter("nvml", GPU, 1)


def test_without_any_method_nothing_is_made_up():
    assert open_meter("auto", CPU, 1) is None
    assert open_meter("none", GPU, 1) is None
    for method in ("nvml", "tdp"):
        with pytest.raises(UnavailableError):
            open_meter(method, CPU, 1)


def test_codecarbon_measures_this_machine():
    pytest.importorskip("codecarbon")
    meter = open_meter("codecarbon", CPU, 1)
    first = meter.kwh(0.0)
    assert 0 <= first <= meter.kwh(0.0) < 1


def test_records_checkpoints_summary_and_a_restart_tell_the_same(corpus, tmp_path):
    accounting = AccountingConfig(energy="none", price_per_hour=3600.0)
    with pytest.raises(InterruptedRunError):
        pretrain(
            tiny(),
            data=corpus,
            run_dir=tmp_path,
            accounting=accounting,
            stop=StopAfter(11),
        )
    before = json.loads((tmp_path / "run.json").read_text())["summary"]
    pretrain(tiny(), data=corpus, run_dir=tmp_path, accounting=accounting)
    after = json.loads((tmp_path / "run.json").read_text())["summary"]
    assert before["steps"] == 11
    assert after["steps"] == 24
    assert 0 < before["wall_seconds"] < after["wall_seconds"]
    assert after["cost"] == pytest.approx(after["wall_seconds"])
    assert after["energy_kwh"] is None
    assert after["energy_method"] == "unknown"
    assert after["train_seconds"] < after["wall_seconds"]
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["event"] == "train"]
    costs = [r["cost"] for r in records]
    assert costs == sorted(costs)
    assert costs[-1] <= after["cost"]
    assert records[-1]["train_flops"] == after["train_flops"]


def test_a_summary_before_the_first_step_divides_by_nothing():
    assert summary(Progress(), peak_flops=1e12)["mfu"] is None
