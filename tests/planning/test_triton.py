"""Triton still builds for the V100 (sm_70), which needs no GPU: two kernels, and all of a step.

A compiler turns a step's elementwise work into such kernels: a norm with its reductions, and GELU
with dropout. Matrix products stay with cuBLAS: Triton no longer uses the V100's tensor cores.
What Inductor itself writes for a step is in `fake_compile.py`.
Collected only if Triton is installed, which torch for CPUs does not need; `.ci/run` installs the
one of torch 2.13: `pip install 'triton==3.7.*'`.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra import libdevice

from tests.planning.test_fake_card import COMPILER, ROOT, library

SYSTEMS = ["bert-small", "roberta-small", "deberta-small", "electra-small", "electra-deberta-small"]


@triton.jit
def layer_norm(x, y, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    place = tl.program_id(0) * BLOCK + columns
    values = tl.load(x + place).to(tl.float32)
    mean = tl.sum(values, 0) / BLOCK
    centred = values - mean
    variance = tl.sum(centred * centred, 0) / BLOCK
    tl.store(y + place, (centred * tl.rsqrt(variance + 1e-12)).to(tl.float16))


@triton.jit
def gelu_dropout(x, y, seed, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + place).to(tl.float32)
    gelu = 0.5 * values * (1 + libdevice.erf(values * 0.7071067811865476))
    keep = tl.rand(seed, place) > 0.1
    tl.store(y + place, tl.where(keep, gelu / 0.9, 0.0).to(tl.float16))


@pytest.mark.parametrize(
    ("kernel", "signature"),
    [
        (layer_norm, {"x": "*fp16", "y": "*fp16", "BLOCK": "constexpr"}),
        (gelu_dropout, {"x": "*fp16", "y": "*fp16", "seed": "i32", "BLOCK": "constexpr"}),
    ],
    ids=["layer_norm", "gelu_dropout"],
)
def test_elementwise_kernels_build_for_the_v100(kernel, signature):
    source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 256})
    built = triton.compile(source, target=GPUTarget("cuda", 70, 32))
    assert ".target sm_70" in built.asm["ptx"]
    assert built.asm["cubin"]


def compiled_step(case, directory):
    """The report of `fake_compile.py`, whose compilers keep nothing outside of `directory`."""
    caches = {name: str(directory) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-m", "tests.planning.fake_compile", library(), case]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | caches, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no C++ compiler ({COMPILER})")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own")
class TestCompiledStep:
    """What `train.compile` makes of a step for a V100, up to the launch of its kernels."""

    @pytest.mark.parametrize("recipe", [
        pytest.param(name, marks=() if name == "bert-small" else pytest.mark.slow)
        for name in SYSTEMS
    ])  # fmt: skip
    def test_every_kernel_builds_for_the_v100_and_a_step_starts_fewer(self, recipe, tmp_path):
        report = compiled_step(recipe, tmp_path)
        eager, compiled = report["eager"], report["compiled"]
        assert compiled["faults"] == {}
        assert compiled["syncs"] == eager["syncs"]
        # One graph to train and one to evaluate.
        assert (report["graphs"], report["breaks"]) == (2, {})
        binaries = [binary for kernel in report["kernels"].values() for binary in kernel]
        assert {binary["target"] for binary in binaries} == {"sm_70"}
        for lacking in ("bf16", "product"):
            assert not any(binary[lacking] for binary in binaries), lacking
        # More needs an agreement with CUDA's driver.
        assert max(binary["shared_bytes"] for binary in binaries) <= 49_152
        assert compiled["num_kernels"] < 0.9 * eager["num_kernels"]
        assert compiled["moved_bytes"] < 0.7 * eager["moved_bytes"]
        assert compiled["peak_bytes"] < 1.01 * eager["peak_bytes"]
        # Gradients of embeddings, in any order: why exact resume does not hold (docs/one_gpu.md).
        assert any(binary["atomics"] for binary in binaries)
