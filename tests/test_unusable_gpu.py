"""A card that torch cannot use is never passed over in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smallbench import unusable_gpu
from smallbench.errors import UnavailableError
from smallbench.jobs.doctor import Options, run
from smallbench.train.precision import assert_compiled_for, choose_device

V100 = "Tesla V100-SXM2-16GB, {driver}, 7.0"
CU126 = "make TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126"
CU130 = "make TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make a machine of these device files and this answer of nvidia-smi; torch finds no card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def machine(*files: str, smi: str | None = None, code: int = 0) -> None:
        devices, programs = tmp_path / "dev", tmp_path / "bin"
        for folder in (devices, programs):
            folder.mkdir(exist_ok=True)
        for name in files:
            (devices / name).touch()
        monkeypatch.setattr(unusable_gpu, "DEVICES", devices)
        monkeypatch.setenv("PATH", str(programs))
        if smi is not None:
            program = programs / "nvidia-smi"
            program.write_text(f"#!/bin/sh\necho '{smi}'\nexit {code}\n")
            program.chmod(0o755)

    return machine


def test_a_machine_without_a_card_trains_on_the_cpu(machine):
    machine()
    assert choose_device("auto").type == "cpu"


def test_a_program_without_a_gpu_does_not_count_as_one(machine):
    """Some images ship it, and it fails in a container that was given no GPU."""
    machine(smi="NVIDIA-SMI has failed", code=9)
    assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("build", "driver", "words"),
    [
        (None, "560.35", ["Tesla V100-SXM2-16GB", "built without CUDA", CU126]),
        ("13.0", "535.10", ["V100", "CUDA 13.0 says", CU126]),
        ("12.6", "470.82", ["Update the driver to 525", CU126]),
    ],
)
def test_auto_refuses_a_card_that_torch_cannot_use(machine, monkeypatch, build, driver, words):
    machine("nvidia0", smi=V100.format(driver=driver))
    monkeypatch.setattr(torch.version, "cuda", build)
    with pytest.raises(UnavailableError) as refused:
        choose_device("auto")
    for word in [*words, "--train.device=cpu"]:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
    assert choose_device("cpu").type == "cpu", "the explicit way out"
    with pytest.raises(UnavailableError, match="V100"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["nvidia0", "nvidia3", "dxg"])
@pytest.mark.parametrize("smi", [None, "Driver/library version mismatch"])
def test_a_device_whose_driver_does_not_work_is_named(machine, device, smi):
    machine(device, smi=smi, code=9)
    with pytest.raises(UnavailableError, match=rf"{device}.*driver does not work \(nvidia-smi"):
        choose_device("auto")


@pytest.mark.parametrize("smi", ["No devices were found", "a, b", "[N/A]"])
def test_an_answer_that_lists_no_card_is_reported(machine, smi):
    machine("nvidia0", smi=smi)
    with pytest.raises(UnavailableError, match="driver does not work"):
        choose_device("auto")


def test_hidden_cards_are_a_choice_of_the_cpu(machine, monkeypatch):
    machine("nvidia0", smi=V100.format(driver="560.35"))
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("capability", "command"),
    [((6, 0), CU126), ((7, 0), CU126), ((8, 9), CU126), ((12, 0), CU130), (None, CU126)],
)
def test_each_generation_has_its_wheels(capability, command):
    assert unusable_gpu.install_command(capability) == command


def test_a_torch_without_the_cards_kernels_names_the_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(UnavailableError) as refused:
        assert_compiled_for(torch.device("cuda"))
    assert CU126 in str(refused.value)


def test_doctor_says_the_same(machine, capsys):
    machine("nvidia0", smi=V100.format(driver="560.35"))
    with pytest.raises(UnavailableError, match=r"built without CUDA|Install a build"):
        run(Options(json=True))
    found = json.loads(capsys.readouterr().out)
    assert CU126 in found["unusable_gpu"]
    assert found["unusable_gpu"] in found["problems"][0]
    run(Options(device="cpu"))
    assert CU126 in capsys.readouterr().out


def test_make_takes_torch_from_the_index_and_keeps_the_choice(tmp_path: Path):
    """With a stand-in for pip: what it is asked for, and how often."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((Path(__file__).parents[1] / name).read_bytes())
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "pip").touch()
    (programs / "python").write_text('#!/bin/sh\necho "$@" >> asked\n')
    (programs / "python").chmod(0o755)

    def make(*words: str) -> list[str]:
        (tmp_path / "asked").write_text("")
        command = ["make", f"PYTHON={sys.executable}", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return (tmp_path / "asked").read_text().splitlines()

    plain, compiled = make("venv")
    assert "index" not in plain
    assert compiled == "-m smallbench.train.deepspeed_engine"
    index = "TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126"
    uninstall, install, _ = make(index)  # the index alone sets up
    assert "uninstall" in uninstall
    assert "--extra-index-url=https://download.pytorch.org/whl/cu126 -c requirements" in install
    assert make("venv") == make(index) == []
    assert "cu130" in make(index.replace("cu126", "cu130"))[1]
