"""The training step on a CUDA card, without one: see `fake_card.py`.

The written list (`fake_card.json`) has for each recipe how many kernels a step may start, and each
kind of large tensor (16 MiB; 64 KiB for tiny recipes) with its number: a float32 tensor that was
not there before is a fault. To write it again on purpose:
`python -m tests.planning.test_fake_card`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from smallbench.recipes import RECIPES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIST = HERE / "fake_card.json"
WRITTEN = json.loads(LIST.read_text()) if LIST.exists() else {}
COMPILER = os.environ.get("CXX", "g++")
ONLY_SYNC = {"step: _local_scalar_dense": 1}
"""The norm of the gradient, which decides whether the update is skipped."""
MUON_SYNC = {"step: _local_scalar_dense": 2}
"""PyTorch's loss scaler reads itself whether Muon may step; fused AdamW looks on the card."""

pytestmark = [
    pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no C++ compiler ({COMPILER})"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own"),
]


@cache
def library():
    """Return the compiled library, which all test processes share."""
    source = HERE / "fake_card.cpp"
    key = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"smallbench-fake-card-{key}.so"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            include, made = Path(torch.__file__).parent / "include", path.with_suffix(".tmp")
            flags = ["-std=c++20", "-shared", "-fPIC", "-O0", f"-I{include}"]
            subprocess.run([COMPILER, *flags, source, "-o", made], check=True)
            made.rename(path)
    return path


def reports(*cases):
    command = [sys.executable, "-m", "tests.planning.fake_card", library(), *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def faults_of(report, written):
    """What is wrong with a step, in words that name the operator."""
    found = list(report["faults"])
    if report["error"]:
        found.append(report["error"])
    syncs, recipe = {**report["syncs"]}, report["case"].partition(":")[0]
    is_muon = RECIPES[recipe]().optim.optimizer == "muon"
    expected_syncs = MUON_SYNC if is_muon else ONLY_SYNC
    for name, count in expected_syncs.items():
        if syncs.get(name) != count and not report["error"]:
            found.append(f"the step waits {syncs.get(name, 0)} times for {name}")
        syncs.pop(name, None)
    found += [f"the host waits for the card in {name}" for name in syncs]
    # Evaluation reads its sums when all batches are done.
    forward = [n for n in report["evaluation_syncs"] if not n.startswith("trainer: ")]
    found += [f"evaluation waits for the card in {name}" for name in forward]
    if report["num_kernels"] > written["num_kernels"]:
        found.append(f"{report['num_kernels']} kernels, at most {written['num_kernels']} expected")
    for name, count in report["large"].items():
        if count != written["large"].get(name, 0):
            found.append(f"large tensors of {name}: {count}, not {written['large'].get(name, 0)}")
    if abs(report["peak_bytes"] / report["planned_bytes"] - 1) > 0.01:
        found.append(f"peak {report['peak_bytes']}, planned {report['planned_bytes']}")
    return found


def marks_of(recipe):
    """The other sizes have the operators of the small recipes; bert-1.5b is offloaded."""
    is_own_kind = recipe.endswith("-small") or recipe == "bert-1.5b"
    return (pytest.mark.slow,) if is_own_kind else (pytest.mark.slow, pytest.mark.exhaustive)


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=marks_of(name)) for name in RECIPES])
def test_a_step_runs_on_the_card_alone_waits_once_and_takes_the_planned_memory(recipe):
    [report] = reports(recipe)
    assert report["precision"] == "fp16"
    assert faults_of(report, WRITTEN[recipe]) == []


MISTAKES = {
    "item": "the host waits for the card in forward: _local_scalar_dense",
    "if": "the host waits for the card in forward: _local_scalar_dense",
    "to_host": "the host waits for the card in forward: _to_copy to the host",
    "from_host": "the host waits for the card in forward: _to_copy from the host",
    "nonzero": "forward: the shape that nonzero returns depends on the data",
    "mask": "forward: the shape that index returns depends on the data",
    "host_tensor": "forward: add makes a tensor on the host",
    "mixed": "forward: index_select takes tensors of host and card",
    "float32": "large tensors of forward: _to_copy float64: 1, not 0",
    "loop": "kernels, at most",
    "kept": "peak ",
}
TOGETHER = ("item+to_host+kept", "if+from_host+float32", "host_tensor+loop")
"""Mistakes of which none causes what is said of another: one step shows them. The rest raise."""

TINY = "bert-tiny"
HALF = f"{TINY}:train.half_residual=true"


@cache
def tiny_reports():
    together = {name: names for names in TOGETHER for name in names.split("+")}
    case_of = {name: f"{TINY}:{together.get(name, name)}" for name in MISTAKES}
    cases = [HALF, *dict.fromkeys(case_of.values())]
    found = dict(zip(cases, reports(*cases), strict=True))
    return {HALF: found[HALF], **{name: found[case] for name, case in case_of.items()}}


def test_each_kind_of_mistake_is_found_and_named():
    for name, said in MISTAKES.items():
        report = tiny_reports()[name]
        assert any(said in fault for fault in faults_of(report, WRITTEN[TINY])), (name, report)


def test_a_half_precision_residual_stream_makes_fewer_float32_tensors_and_fits_its_plan():
    report, usual = tiny_reports()[HALF], WRITTEN[TINY]["large"]
    assert (report["error"], report["faults"], report["syncs"]) == (None, {}, ONLY_SYNC)
    assert report["peak_bytes"] == pytest.approx(report["planned_bytes"], rel=0.01)
    layer_norms = "forward: native_layer_norm float"
    assert (
        report["large"][f"{layer_norms}16"] + report["large"].get(f"{layer_norms}32", 0)
        == (usual[f"{layer_norms}32"])
    )
    float32 = [
        sum(count for name, count in large.items() if name.endswith("float32"))
        for large in (report["large"], usual)
    ]
    assert float32[0] < 0.7 * float32[1]


if __name__ == "__main__":
    kept = {
        r["case"]: {name: r[name] for name in ("num_kernels", "large")} for r in reports(*RECIPES)
    }
    lines = [f"{json.dumps(name)}: {json.dumps(content)}" for name, content in kept.items()]
    LIST.write_text("{\n" + ",\n".join(lines) + "\n}\n")
