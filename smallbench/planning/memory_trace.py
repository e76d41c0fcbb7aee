"""What a training step allocates, found by running it without allocating anything.

The real model, objective, autocast and optimizer run on fake tensors, which have shapes and no
data, while every storage that comes and goes is counted. So what a plan says of memory follows the
code, not a formula beside it. What is not seen is what kernels use inside, and what an allocator
wastes.

Autograd refuses fake tensors of a GPU where torch is built without CUDA. So they are always the
CPU's, and for a GPU the models take a GPU's paths and `LikeCuda` does what lies below them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from smallbench.batch import Batch
from smallbench.config import require
from smallbench.errors import ConfigError
from smallbench.models.encoder import checkpoint_activations
from smallbench.models.kernels.dispatch import as_on_gpu
from smallbench.objectives.base import PretrainObjective
from smallbench.objectives.masking import Vocabulary, micro_batches
from smallbench.train.build import build_objective
from smallbench.train.config import PretrainConfig, TrainConfig
from smallbench.train.optim import build_optimizer
from smallbench.train.precision import DTYPES, autocast
from smallbench.train.trainer import count_targets, weigh


@dataclass
class Work:
    """What a part of a step computes."""

    products: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Matrix products and attention, by FLOPs and bytes that are read and written."""
    moved_bytes: int = 0
    """Read and written by all other kernels."""
    num_kernels: int = 0


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations inside return, until they are freed.

    `work` adds up what the operations compute.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.work = Work()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: leave out the guard around each operation."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and look at what it returns."""
        if func is torch.ops.prim.device.default:  # asked before most operations: 70 % of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        are_new = [self._add(output.untyped_storage()) for output in outputs]
        if any(are_new) or func._schema.is_mutable:  # views start no kernel
            self._note(func, args, kwargs, result, outputs)
        return result

    def _note(
        self, func: Any, args: Sequence[Any], kwargs: Any, result: Any, outputs: list[Tensor]
    ) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(_bytes(t) for t in (*inputs, *outputs))
        if not outputs:  # lists of tensors, changed in place
            moved *= 2
        self.work.num_kernels += 1
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self.work.products[int(flops), moved] += 1
        else:
            self.work.moved_bytes += moved

    def _add(self, storage: Any) -> bool:
        if storage in self._known:
            return False
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)
        return True

    def _free(self, size: int) -> None:
        self.live -= size


def _bytes(tensor: Tensor) -> int:
    """Return what reading a tensor moves; an expanded one is smaller than its shape."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class LikeCuda(TorchFunctionMode):
    """What CUDA computes in another way than the CPU, below the paths that the models choose.

    Autocast runs norms and sums in float32; dropout keeps a mask of one byte; attention's fused
    kernels keep no scores. (The memory-efficient kernel stands for all of them: it runs on every
    card and with every mask, and what the others keep hardly differs.)
    """

    # What the models call of PyTorch's list "CUDA ops that autocast to float32".
    FLOAT32 = frozenset({
        F.layer_norm, F.binary_cross_entropy_with_logits, F.cross_entropy, torch.sum, Tensor.sum,
        Tensor.softmax, Tensor.cumsum,
    })  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function as CUDA would."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **kwargs)
        if func in self.FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **kwargs)


class AnyNumber(TorchFunctionMode):
    """Reads 1.0 from a tensor without data: some optimizers look at the number of their step."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, or return the number."""
        return 1.0 if func is Tensor.item else func(*args, **(kwargs or {}))


def _float32(value: Any) -> Any:
    is_lower = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_lower else value


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, dropout_p: float, scale: float
) -> Tensor:
    """PyTorch's memory-efficient kernel, as `F.scaled_dot_product_attention` calls it on CUDA."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -torch.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
    needs_gradient = any(t is not None and t.requires_grad for t in (q, k, v, attn_mask))
    context: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, needs_gradient, dropout_p, False, scale=scale
    )[0]
    return context


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device in one step, after the first (which makes the optimizer's states)."""

    weights: int
    states: int
    gradients: int
    activations: int
    """What a forward pass keeps for the backward pass, weights that autocast converts included."""
    peak: int
    """The most that lives at once."""
    micro: Work
    """Of one micro-batch: forward and backward pass."""
    update: Work
    """Of the optimizer, where it is on the device."""


class StepTracer:
    """Traces steps of a configuration on a device of `device_type` in a precision.

    The model is built once, and each step is traced once; `objective` can be asked for its
    parameters and FLOPs. Where it is `offloaded`, weights are in the precision itself, a gradient
    is gone as soon as it is there (carried to the host), and the optimizer's states are elsewhere.
    """

    def __init__(
        self, config: PretrainConfig, *, device_type: str, precision: str, offloaded: bool = False
    ) -> None:
        self._config, self._device_type = config, device_type
        self._precision, self._offloaded = precision, offloaded
        self._fake, self._memory = FakeTensorMode(), LiveBytes()
        self._optimizer: torch.optim.Optimizer | None = None
        self._state_bytes = 0
        self.step = cache(self._step)
        with self._tracing():
            usual = torch.get_default_dtype()
            torch.set_default_dtype(DTYPES[precision] if offloaded else torch.float32)
            try:  # converting a module afterwards fails on fake tensors
                self.objective = stand_in_objective(config)
            finally:
                torch.set_default_dtype(usual)
            self.objective.train()
            if offloaded:
                for parameter in self.objective.parameters():
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
            self._weight_bytes = self._memory.live

    def _make_gradients(self) -> None:
        for parameter in self.objective.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def _make_states(self) -> None:
        """Build the optimizer, whose first step makes its states."""
        with self._tracing():
            self._optimizer = build_optimizer(self.objective, self._config.optim)
            self._make_gradients()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._state_bytes = self._memory.live - self._weight_bytes

    def _step(self, num_rows: int, *, accumulates: bool, checkpoint: bool) -> StepMemory:
        """The last of a step's micro-batches, of `num_rows` rows, and the update.

        `checkpoint` recomputes activations. A step that `accumulates` has gradients already.
        """
        if not self._offloaded and self._optimizer is None:
            self._make_states()
        batch = self.sample(num_rows, is_padded=True)
        totals = count_targets(self.objective, [batch])
        memory = self._memory
        checkpoint_activations(self.objective, checkpoint)
        with self._tracing():
            memory.peak = static = memory.live
            if accumulates and not self._offloaded:
                self._make_gradients()
            before, memory.work = memory.live, Work()
            device_batch = batch.map(self._fake.from_tensor)
            with autocast("cpu", "fp32" if self._offloaded else self._precision):
                sums = self.objective(device_batch)
            share = weigh(self.objective, sums, totals)
            activations = memory.live - before
            # Not `share.backward()`, which suspends the function mode that checkpointing needs.
            torch.autograd.Variable._execution_engine.run_backward(
                (share,), (torch.ones_like(share),), False, False, (),
                allow_unreachable=True, accumulate_grad=True,
            )  # fmt: skip
            del sums, share
            gradients = memory.live - static
            micro, memory.work = memory.work, Work()
            if self._optimizer is not None:
                is_gpu = self._device_type == "cuda"
                torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0, foreach=is_gpu)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return StepMemory(
            weights=self._weight_bytes,
            states=self._state_bytes,
            gradients=gradients,
            activations=activations,
            peak=memory.peak,
            micro=micro,
            update=memory.work,
        )

    def sample(self, num_rows: int, *, is_padded: bool = False) -> Batch:
        """Return a micro-batch of random rows, all of them full, or one of them not."""
        generator = np.random.default_rng(0)
        ids_BL = random_rows(self._config, num_rows, generator)
        if is_padded:
            ids_BL[0, -1] = self.objective.vocabulary.pad_id
        [batch] = micro_batches(self.objective.corrupt(ids_BL, generator), num_rows)
        return batch

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._device_type == "cuda":
                stack.enter_context(as_on_gpu())
                stack.enter_context(LikeCuda())
            stack.enter_context(AnyNumber())
            stack.enter_context(self._fake)
            stack.enter_context(self._memory)
            yield


def tracer_of(
    config: PretrainConfig, *, device_type: str, precision: str, offloaded: bool
) -> StepTracer:
    """Return the tracer of all configurations with the same forward pass and optimizer."""
    step = PretrainConfig(
        sequence_length=config.sequence_length,
        model=config.model,
        objective=config.objective,
        optim=config.optim,
        train=TrainConfig(half_residual=config.train.half_residual),
    )
    return _known_tracer(step, device_type=device_type, precision=precision, offloaded=offloaded)


_known_tracer = lru_cache(maxsize=8)(StepTracer)


def stand_in_vocabulary(config: PretrainConfig) -> Vocabulary:
    """A vocabulary of the configuration's size, with special tokens at its beginning.

    Raises `ConfigError` where the configuration leaves the size to a tokenizer.
    """
    size = config.model.vocab_size
    if size is None:
        raise ConfigError(
            f"{config.recipe} takes the size of its vocabulary from the tokenizer; name one with "
            "--model.vocab_size=8192"
        )
    require(size > 5, "model.vocab_size", size, "at least 6: five special tokens and a word")
    return Vocabulary(
        size=size, pad_id=0, cls_id=1, sep_id=2, mask_id=3, special_ids=tuple(range(5))
    )


def stand_in_objective(config: PretrainConfig) -> PretrainObjective:
    """The configuration's objective with its model, and a stand-in for the vocabulary."""
    return build_objective(config, stand_in_vocabulary(config))


def random_rows(
    config: PretrainConfig, num_rows: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Full rows of ordinary tokens, between the special ones, [num_rows, L]."""
    vocabulary = stand_in_vocabulary(config)
    first, shape = len(vocabulary.special_ids), (num_rows, config.sequence_length)
    ids_BL = generator.integers(first, vocabulary.size, shape)
    ids_BL[:, 0], ids_BL[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    return ids_BL


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
