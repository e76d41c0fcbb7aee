"""Triton still builds for the V100 (sm_70), which needs no GPU: the kinds of kernel of a step.

A compiler turns a step's elementwise work into such kernels: a norm with its reductions, and GELU
with dropout. Matrix products stay with cuBLAS: Triton no longer uses the V100's tensor cores.
Collected only if Triton is installed, which torch for CPUs does not need; `.ci/run` installs the
one of torch 2.13: `pip install 'triton==3.7.*'`.
"""

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra import libdevice


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
