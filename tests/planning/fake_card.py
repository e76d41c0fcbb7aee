"""A program: a step of each recipe on a card that does not exist, by the project's own trainer.

    python -m tests.planning.fake_card LIBRARY RECIPE[:MUTATION+…|:KEY=VALUE] …

LIBRARY is `fake_card.cpp`, compiled. Prints one JSON object for each recipe: what the step did on
the card, operator by operator. A mutation is a mistake that is put into the objective; several are
joined by `+`.
"""

# ruff: noqa: E402 (the library is loaded before torch)
import ctypes
import importlib.util
import json
import sys
import weakref
from collections import Counter
from functools import cache
from pathlib import Path

LIBRARY, *CASES = sys.argv[1:]
for path in (
    *(Path(importlib.util.find_spec("torch").submodule_search_locations[0]) / "lib" / name
      for name in ("libc10.so", "libtorch_cpu.so")),
    LIBRARY,
):  # fmt: skip
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

for name, value in {
    "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True,
    "_is_in_bad_fork": False, "get_device_capability": (7, 0), "get_arch_list": ["sm_70"],
    "get_device_name": "Tesla V100-SXM2-16GB",
    "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
}.items():  # fmt: skip
    setattr(torch.cuda, name, lambda *arguments, value=value, **named: value)


def moved(module, device):
    """`Module.to`: a fake parameter cannot change its device in place."""
    copies = {p: torch.nn.Parameter(p.detach().to(device)) for p in module.parameters()}
    for part in module.modules():
        part._parameters.update(
            {n: copies[p] for n, p in part._parameters.items() if p is not None}
        )
        part._buffers.update({n: b.to(device) for n, b in part._buffers.items() if b is not None})
    return module


torch.nn.Module.to = moved

from smallbench.config import override_all
from smallbench.models.encoder import checkpoint_activations
from smallbench.objectives.masking import micro_batches
from smallbench.planning.memory_trace import fused_attention, random_rows, stand_in_objective
from smallbench.planning.planner import Planner
from smallbench.recipes import RECIPES
from smallbench.train.budget import Budget
from smallbench.train.engine import EngineChoice, build_engine
from smallbench.train.precision import choose_device, choose_precision
from smallbench.train.processes import ALONE
from smallbench.train.trainer import Trainer, evaluate

F.scaled_dot_product_attention = lambda q, k, v, attn_mask=None, dropout_p=0.0, scale=None: (
    fused_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, scale=scale)
)

LARGE_BYTES = {"tiny": 2**16}
"""Size from which on tensors are listed, by the last word of the recipe's name; else 16 MiB."""
DYNAMIC = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
READS = {"_local_scalar_dense", "equal"}
"""Operators that return a number of the tensor's content to the host."""


def name_of(func):
    return func._schema.name.partition("::")[2]


class Watch(TorchDispatchMode):
    """Notes what each operator does to the card. A storage takes whole blocks of 512 bytes."""

    def __init__(self, large_bytes):
        super().__init__()
        self.phase, self.large_bytes = "build", large_bytes
        self.live = self.peak = 0
        self.known = weakref.WeakSet()
        self.begin()

    def begin(self):
        self.num_kernels = 0
        self.faults, self.syncs, self.large = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, name_of(func)
        inputs = tensors_in((args, kwargs))
        on_card = any(t.device.type == "cuda" for t in inputs)
        self.look_at_inputs(name, inputs, args)
        if name in READS:
            if on_card:
                self.syncs[f"{self.phase}: {name}"] += 1
            # Nothing on the card is infinite; a step's number, on the host, is at least 1.
            return 0.0 if on_card and inputs[0].is_floating_point() else 1
        # The loss scaler's own kernels have no fake version.
        if name == "_amp_update_scale_":
            result = args[0]
        elif name == "_amp_foreach_non_finite_check_and_unscale_":
            result = None
        else:
            result = func(*args, **kwargs)
        is_new = self.look_at_outputs(name, inputs, tensors_in(result), kwargs)
        self.num_kernels += on_card and (is_new or func._schema.is_mutable)
        return result

    def look_at_inputs(self, name, inputs, args):
        masks = name.strip("_").startswith("index") and isinstance(args[1], list | tuple)
        has_mask = masks and any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1]))
        if name in DYNAMIC or has_mask:
            self.faults[f"{self.phase}: the shape that {name} returns depends on the data"] += 1
        devices = {t.device.type for t in inputs if t.dim()}
        if len(devices) > 1 and name != "copy_":
            self.faults[f"{self.phase}: {name} takes tensors of host and card"] += 1

    def look_at_outputs(self, name, inputs, outputs, kwargs):
        """Whether a new tensor lies on the card."""
        sources, are_new = {t.device.type for t in inputs}, False
        for output in outputs:
            if output.device.type == "cpu":
                if "cuda" in sources:
                    self.syncs[f"{self.phase}: {name} to the host"] += 1
                elif output.dim() and self.phase != "trainer":
                    self.faults[f"{self.phase}: {name} makes a tensor on the host"] += 1
            elif "cpu" in sources and name == "_to_copy" and not kwargs.get("non_blocking"):
                self.syncs[f"{self.phase}: {name} from the host"] += 1
            if output.device.type == "cuda" and self.add(output.untyped_storage()):
                are_new = True
                if output.numel() * output.element_size() >= self.large_bytes:
                    dtype = str(output.dtype).removeprefix("torch.")
                    self.large[f"{self.phase}: {name} {dtype}"] += 1
        return are_new

    def add(self, storage):
        if storage in self.known:
            return False
        self.known.add(storage)
        size = -(-storage.nbytes() // 512) * 512
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.free, size)
        return True

    def free(self, size):
        self.live -= size


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def upcast(model):
    layer = model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden_BLD, context: forward(hidden_BLD.double().float(), context)


def before_forward(change):
    """A mutation that does something with each batch."""

    def mutate(objective):
        forward = objective.forward

        def changed(batch):
            change(objective, batch)
            return forward(batch)

        objective.forward = changed

    return mutate


def many_kernels(objective, batch):
    for row in batch.input_ids:
        row + 1


MUTATIONS = {
    "item": before_forward(lambda o, b: b.input_ids.sum().item()),
    "if": before_forward(lambda o, b: bool((b.input_ids == 5).any())),
    "to_host": before_forward(lambda o, b: b.input_ids.cpu()),
    "from_host": before_forward(lambda o, b: torch.arange(99).to(b.input_ids.device)),
    "nonzero": before_forward(lambda o, b: (b.labels != -100).nonzero()),
    "mask": before_forward(lambda o, b: b.input_ids[b.labels != -100]),
    "host_tensor": before_forward(lambda o, b: torch.zeros(99) + 1),
    "mixed": before_forward(lambda o, b: b.input_ids.index_select(0, torch.arange(9))),
    "float32": lambda o: upcast(o.model),
    "loop": before_forward(many_kernels),
    "kept": before_forward(lambda o, b: o.__dict__.setdefault("kept", []).append(
        torch.zeros(2**19, device=b.input_ids.device))),
}  # fmt: skip


class Prepared:
    """A batch source of padded random rows, made before the card."""

    def __init__(self, config, objective, fake):
        micro, whole = config.train.rows_per_forward, config.train.global_batch_size
        whole = min(whole, 2 * micro)  # two micro-batches show what accumulating does
        generator = np.random.default_rng(0)
        ids_BL = random_rows(config, whole, generator)
        ids_BL[::micro, -1] = objective.vocabulary.pad_id
        parts = micro_batches(objective.corrupt(ids_BL, generator), micro)
        self.batches = [part.map(fake.from_tensor) for part in parts]

    def read(self, position, fraction=0.0):
        return self.batches, position + 1


def phased(watch, phase, function):
    def inside(*arguments, **named):
        before, watch.phase = watch.phase, phase
        try:
            return function(*arguments, **named)
        finally:
            watch.phase = before

    return inside


@cache
def planned_bytes(config, precision):
    planner = Planner(config, device_type="cuda", precision=precision)
    way = (EngineChoice(), config.train.checkpoint_activations)
    return planner.memory(way, config.train.rows_per_forward).peak


def report_of(case, overrides=None, watch_class=Watch):
    recipe, _, mutation = case.partition(":")
    key, is_override, value = mutation.partition("=")
    if is_override:
        overrides, mutation = {**(overrides or {}), key: value}, ""
    config = override_all(RECIPES[recipe](), overrides or {})
    if config.model.vocab_size is None:
        config = override_all(config, {"model.vocab_size": "8192"})
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    large = LARGE_BYTES.get(recipe.split("-")[-1], 2**24)
    fake, watch = FakeTensorMode(), watch_class(large)
    with fake, watch:
        objective = stand_in_objective(config)
        checkpoint_activations(objective, config.train.checkpoint_activations)
        engine = build_engine(
            EngineChoice(), objective, config.optim, device=device, precision=precision,
            processes=ALONE, micro_batch_size=config.train.rows_per_forward,
        )  # fmt: skip
    source = Prepared(config, objective, fake)
    for name in filter(None, mutation.split("+")):
        MUTATIONS[name](objective)
    for name in ("forward", "backward", "step"):
        setattr(engine, name, phased(watch, name, getattr(engine, name)))
    trainer = Trainer(
        objective=objective, engine=engine, batches=source, learning_rate=lambda progress: 1e-4,
        budget=Budget(3),
    )  # fmt: skip
    objective.train()
    watch.phase, error = "trainer", None
    try:
        with fake, watch:
            trainer.train_step()  # makes the optimizer's states
            watch.begin()
            watch.peak = watch.live
            trainer.train_step()
            peak, step = watch.peak, dict(vars(watch))
            watch.begin()
            engine.forward = phased(watch, "evaluation", engine.forward)
            evaluate(objective, engine, source.batches)
    except Exception as caught:  # a mutation's
        error = f"{type(caught).__name__}: {str(caught).splitlines()[0]}"
        peak, step = watch.peak, vars(watch)
    return {
        "case": case,
        "precision": precision,
        "error": error,
        "syncs": step["syncs"],
        "evaluation_syncs": watch.syncs,
        "faults": step["faults"],
        "large": dict(sorted(step["large"].items())),
        "num_kernels": step["num_kernels"],
        "peak_bytes": peak,
        "planned_bytes": planned_bytes(config, precision),
    }


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps(report_of(case)), flush=True)
