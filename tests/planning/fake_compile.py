"""A program: a compiled step of each recipe on a V100 that does not exist.

    python -m tests.planning.fake_compile LIBRARY RECIPE …

All that `torch.compile` does for the project's trainer on a card, on top of `fake_card.py`: Dynamo,
autograd, Inductor's code generation, and Triton down to the machine code for sm_70. Then the step
runs Inductor's program; only the launch of a Triton kernel does nothing. Prints one JSON object for
each recipe, with two layers at its real widths: how many kernels a step starts and how much they
move, eager and compiled, and the facts of each kernel. Needs Triton, a C++ compiler, and no CUDA.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from tests.planning.fake_card import CASES, MUTATIONS, Watch, name_of, phased, report_of, tensors_in

# isort: split
import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from triton.backends.compiler import GPUTarget

from smallbench.models.kernels import token_loss

V100 = SimpleNamespace(
    name="Tesla V100-SXM2-16GB", gcnArchName="", major=7, minor=0, multi_processor_count=80,
    warp_size=32, regs_per_multiprocessor=65_536, max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024, shared_memory_per_block=49_152, L2_cache_size=6 * 2**20,
    shared_memory_per_block_optin=98_304, total_memory=16 * 2**30,
)  # fmt: skip
LAYERS = {"model.num_hidden_layers": "2"}
"""A first and a last layer: Inductor writes the same kernels for all between them."""
ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
"""Operators that start no kernel."""
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

for name, value in {
    "get_device_properties": V100, "current_device": 0, "device_count": 1, "get_raw_stream": 0,
    "is_bf16_supported": False, "_exchange_device": 0, "_maybe_exchange_device": 0,
    "exchange_device": 0, "maybe_exchange_device": 0, "set_device": None, "synchronize": None,
}.items():  # fmt: skip
    answer = lambda *arguments, value=value, **named: value  # noqa: E731
    setattr(torch.cuda, name, answer)
    setattr(CudaInterface, name, staticmethod(answer))
torch._C._cuda_getCurrentRawStream = lambda index: 0
# In C++ these two go around the fake tensors.
torch._C._dynamo.guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
    size, stride, dtype=dtype, device="cuda"
)
torch._C._dynamo.guards._reinterpret_tensor = lambda tensor, size, stride, offset=0: (
    torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)
)
# The scalars of Inductor's patterns stay on the host, as on a machine without CUDA.
torch._subclasses.FakeTensorMode.avoid_device_init = True
triton.runtime.driver.set_active(
    SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 70, 32))
)
triton_helpers.set_driver_to_gpu = lambda: None
inductor.compile_threads = 1
inductor.force_disable_caches = True
inductor.use_static_triton_launcher = False  # loads kernels through CUDA's driver
inductor.shape_padding = False  # a card is asked which is faster, padded or not


class OnHost(TorchDispatchMode):
    """Folds constants on the host: Inductor computes them with real tensors of the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return func(*args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})


def on_host(method):
    def inside(*arguments, **named):
        with OnHost():
            return method(*arguments, **named)

    return inside


for name in ("__init__", "_deduce_value"):
    method = getattr(UniformValueConstantFolder, name)
    setattr(UniformValueConstantFolder, name, on_host(method))


class WatchKernels(Watch):
    """Counts kernels, and the bytes that all but products and attention read and write."""

    built: ClassVar[list[CachingAutotuner]] = []
    current: ClassVar[Watch | None] = None

    def __init__(self, large_bytes):
        WatchKernels.current, self.steps = self, []
        super().__init__(large_bytes)

    @classmethod
    def ignore_compile_internals(cls):
        """Watch what compiled code does, not the compiler."""
        return True

    def begin(self):
        super().begin()
        self.started, self.moved = Counter(), Counter()
        self.steps.append((self.started, self.moved))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name, before = kwargs or {}, name_of(func), self.num_kernels
        if name == "token_loss":  # the operator's kernels, not the operator
            with self:
                return token_loss._computed(*args, **kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.num_kernels > before and name not in ALLOCATIONS:
            is_product = func._overloadpacket in flop_registry
            self.note(tensors_in((args, kwargs, result)), is_product)
        return result

    def note(self, tensors, is_product=False):
        self.started[self.phase] += 1
        for tensor in () if is_product else tensors:
            size = tensor.numel() * tensor.element_size()
            self.moved[self.phase] += min(size, tensor.untyped_storage().nbytes())


def compute_apart(*arguments, compute=token_loss._compute):
    """The token loss, whose kernels a compiler leaves as they are: counted apart."""
    return phased(WatchKernels.current, "loss", compute)(*arguments)


token_loss._compute = compute_apart
MUTATIONS["compile"] = lambda objective: objective.compile()
CachingAutotuner._make_launchers = lambda self: WatchKernels.built.append(self)
CachingAutotuner.run = lambda self, *arguments, **named: WatchKernels.current.note(
    tensors_in(arguments)
)


def binaries_of(kernel):
    """The facts of each binary of a kernel: Inductor tries several sizes of block."""
    for result in kernel.compile_results:
        built = result.kernel
        ptx = built.asm["ptx"]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = subprocess.check_output([CUOBJDUMP, "-res-usage", file.name], text=True)
        yield {
            "target": re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1],
            "bf16": "bf16" in ptx,
            "product": "tl.dot" in kernel.fn.src,
            "atomics": bool(re.search(r"\b(atom|red)\.", ptx)),
            "shared_bytes": built.metadata.shared,
            "registers": int(re.search(r"REG:(\d+)", usage)[1]),
            "spilled_bytes": int(re.search(r"LOCAL:(\d+)", usage)[1])
            + int(re.search(r"STACK:(\d+)", usage)[1]),
        }


def compiled_report(recipe):
    found = {"case": recipe}
    for way, mutation in {"eager": "", "compiled": ":compile"}.items():
        report = report_of(recipe + mutation, LAYERS, WatchKernels)
        assert report["error"] is None, f"{recipe}, {way}: {report['error']}"
        started, moved = WatchKernels.current.steps[1]
        found[way] = {
            **{k: report[k] for k in ("faults", "syncs", "peak_bytes")},
            "num_kernels": started["forward"] + started["backward"],
            "moved_bytes": moved["forward"] + moved["backward"],
        }
    return found | {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": counters["graph_break"],
        "kernels": {
            f"{number} {kernel.inductor_meta['kernel_name']}": list(binaries_of(kernel))
            for number, kernel in enumerate(WatchKernels.built)
        },
    }


if __name__ == "__main__":
    for case in CASES:
        torch._dynamo.reset()
        counters.clear()
        WatchKernels.built.clear()
        print(json.dumps(compiled_report(case)), flush=True)
