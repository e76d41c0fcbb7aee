"""The engine: where a loss becomes an update. `TorchEngine` is plain PyTorch.

The trainer and the checkpoints know the protocol only. Weights and optimizer state leave an engine
whole, in float32 and by the parameters' names, whatever it cuts, rounds or keeps elsewhere: a run
may go on with another engine, another offload or another number of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.errors import DataError
from smallbench.objectives.base import Objective, Sums
from smallbench.train.config import OptimConfig
from smallbench.train.memory import keep_freed_memory
from smallbench.train.optim import build_adamw
from smallbench.train.precision import DTYPES
from smallbench.train.processes import ALONE, Processes
from smallbench.train.weights import distinct_state, load_distinct

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter, by torch's and DeepSpeed's common names."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    grad_norm: float
    """Norm of the whole gradient before clipping; may be non-finite."""
    skipped: bool
    """True where the gradient was not finite and the weights were left alone."""


class Engine(Protocol):
    """Owns the objective's gradients, the optimizer and the loss scale.

    Where there are several processes, gradients are summed over them, and all must call the methods
    in step, `weights` and `state_dict` too.
    """

    device: torch.device
    precision: str
    processes: Processes

    def forward(self, batch: Batch) -> Sums:
        """The objective's sums of a micro-batch on `device`, in the engine's precision."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, one micro-batch's share; `is_last` of the step."""
        ...

    def step(self, *, learning_rate: float) -> Update:
        """Clip, update, clear the gradients; skip the update where they are not finite."""
        ...

    def discard_gradients(self) -> None:
        """Forget what `backward` has added since the last step; no step may follow."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The weights in float32 by name, one that several parts share under its first name."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`; raises `RuntimeError` where names or shapes do not fit."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """`optimizer`: the number of steps and both moments by name; `scaler`: the loss scale."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, also of another engine's."""
        ...


class TorchEngine:
    """AdamW on one device, mixed precision by autocast over float32 weights."""

    def __init__(
        self,
        objective: Objective,
        optim: OptimConfig,
        *,
        device: torch.device,
        precision: str,
        processes: Processes = ALONE,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.objective = objective
        self.module = objective.module.to(device)
        self.precision = precision
        self.processes = processes
        self.clip_norm = optim.clip_norm
        self.optimizer = build_adamw(self.module, optim)
        # fp16 alone needs its loss scaled: bf16 has the exponent range of fp32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 or fp16, or nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def forward(self, batch: Batch) -> Sums:
        """The objective's sums, under autocast."""
        with self.autocast():
            return self.objective(batch)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, scaled under fp16."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, *, learning_rate: float) -> Update:
        """One AdamW step at `learning_rate`, or none where the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                self.processes.sum(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm).item()
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # the scaler looks for non-finite values itself
        self.scaler.update()
        self.discard_gradients()
        return Update(grad_norm=norm, skipped=not finite)

    def discard_gradients(self) -> None:
        """Forget what `backward` has added since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The module's own tensors, not copies of them."""
        return distinct_state(self.module)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `weights` into the module."""
        load_distinct(self.module, weights)

    def state_dict(self) -> dict[str, Any]:
        """Steps and moments by name, and the loss scale."""
        named = dict(self.module.named_parameters())
        states = {n: self.optimizer.state[p] for n, p in named.items() if p in self.optimizer.state}
        return {
            "optimizer": {
                "num_steps": int(max((s["step"].item() for s in states.values()), default=0)),
                **{moment: {n: s[moment] for n, s in states.items()} for moment in MOMENTS},
            },
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `DataError` where the state is of other parameters."""
        optimizer = check_optimizer_state(state, self.module)
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        content = self.optimizer.state_dict()
        order = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        num_steps = float(optimizer["num_steps"])
        content["state"] = {
            # A tensor for each, since Adam counts each in place.
            index: {"step": torch.tensor(num_steps), **{m: optimizer[m][name] for m in MOMENTS}}
            for index, name in enumerate(order)
            if name in optimizer[MOMENTS[0]]
        }
        self.optimizer.load_state_dict(content)
        load_loss_scale(self.scaler, state["scaler"])


def load_loss_scale(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Put back a loss scale; of another engine's, which counts otherwise, the scale alone."""
    if state.keys() == scaler.state_dict().keys():
        scaler.load_state_dict(dict(state))
    elif scaler.is_enabled() and "scale" in state:
        scaler.update(float(state["scale"]))


def check_optimizer_state(state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    """The `optimizer` of an engine's state; raises `DataError` where it is of other parameters."""
    optimizer: Mapping[str, Any] = state["optimizer"]
    shapes = {name: p.shape for name, p in full_shapes(module).items()}
    for moment in MOMENTS:
        if moment not in optimizer:
            raise DataError(f"the checkpoint's optimizer state has no {moment!r}")
        for name, tensor in optimizer[moment].items():
            if shapes.get(name) != tensor.shape:
                raise DataError(
                    f"the checkpoint's optimizer state of {name!r} has the shape "
                    f"{list(tensor.shape)}, the model's is {list(shapes.get(name, ()))}"
                )
    return optimizer


def full_shapes(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, as tensors without content of their whole shape.

    DeepSpeed leaves an empty tensor in place of a parameter that it has cut into partitions.
    """
    return {
        name: torch.empty(getattr(p, "ds_shape", p.shape), device="meta")
        for name, p in module.named_parameters()
    }
