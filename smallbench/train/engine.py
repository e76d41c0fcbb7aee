"""The engine turns a loss into an update: its protocol, its choice, and plain PyTorch's.

Weights and optimizer state leave an engine whole, in float32 and by the parameters' names, so a run
may continue with another engine, another offload or another number of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.checkpoints.state import distinct_state, load_distinct
from smallbench.objectives.base import Objective, Sums
from smallbench.train.config import AdamWConfig, OptimizerConfig, TrainConfig
from smallbench.train.memory import keep_freed_memory
from smallbench.train.optim import build_optimizer, check_states, load_states, states_of
from smallbench.train.precision import autocast
from smallbench.train.processes import ALONE, Processes


@dataclass(frozen=True)
class Update:
    """The result of one optimizer step."""

    grad_norm: float
    """Norm of the whole gradient before clipping; may be non-finite."""
    skipped: bool
    """True if the gradient was not finite and the weights were left unchanged."""


class Engine(Protocol):
    """Owns the objective's gradients, the optimizer and the loss scale.

    With several processes, gradients are summed over them, and all call every method in step.
    """

    device: torch.device
    precision: str
    processes: Processes

    def forward(self, batch: Batch) -> Sums:
        """Return the objective's sums of a micro-batch, in the engine's precision."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, one micro-batch's share; `is_last` of the step."""
        ...

    def step(self, *, learning_rate: float) -> Update:
        """Clip, update, clear the gradients; skip the update if they are not finite."""
        ...

    def discard_gradients(self) -> None:
        """Clear the gradients since the last step."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return the weights in float32 by name; a shared weight has its first name.

        They are the engine's own memory if possible, for `state_dict` too; whole in process 0 only.
        """
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load what `weights` returned; raise `RuntimeError` if names or shapes differ."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return `optimizer`: its name and state by parameter, and `scaler`: the loss scale."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`, also another engine's; raise `DataError` if it does not fit."""
        ...


class TorchEngine:
    """Any optimizer on one device, mixed precision by autocast over float32 weights."""

    def __init__(
        self,
        objective: Objective,
        optim: OptimizerConfig,
        *,
        device: torch.device,
        precision: str,
        processes: Processes = ALONE,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.module: nn.Module = objective.to(device)
        self.precision = precision
        self.processes = processes
        self.clip_norm = optim.clip_norm
        self.optimizer, self._kind = build_optimizer(self.module, optim), optim.optimizer
        # fp16 alone needs its loss scaled: bf16 has the exponent range of fp32.
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=objective.initial_loss_scale, enabled=precision == "fp16"
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context that casts to bf16 or fp16; none for fp32."""
        return autocast(self.device.type, self.precision)

    def forward(self, batch: Batch) -> Sums:
        """Return the objective's sums, under autocast."""
        with self.autocast():
            sums: Sums = self.module(batch)
        return sums

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, scaled under fp16."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, *, learning_rate: float) -> Update:
        """One optimizer step at `learning_rate`, or none if the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
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
        """Clear the gradients since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """Return the module's own tensors, not copies of them."""
        return distinct_state(self.module)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load `weights` into the module."""
        load_distinct(self.module, weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state by name, and the loss scale."""
        states = states_of(self.module, self.optimizer)
        return {
            "optimizer": {"optimizer": self._kind, "states": states},
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`; raise `DataError` for another optimizer or other parameters."""
        states = check_states(state["optimizer"], self._kind, shapes_of(self.module))
        load_states(self.module, self.optimizer, states)
        load_loss_scale(self.scaler, state["scaler"])


def load_loss_scale(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Restore a loss scale; another engine's counters are not loaded."""
    if not scaler.is_enabled() or "scale" not in state:
        return
    own = scaler.state_dict()
    is_own = state.keys() == own.keys()
    scaler.load_state_dict(dict(state) if is_own else {**own, "scale": float(state["scale"])})


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Return the whole shape of each parameter, also of one that DeepSpeed has partitioned."""
    return {n: torch.Size(getattr(p, "ds_shape", p.shape)) for n, p in module.named_parameters()}


@dataclass(frozen=True)
class EngineChoice:
    """An engine with its options resolved."""

    engine: Literal["torch", "deepspeed"] = "torch"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    zero_stage: int | None = None


def choose_engine(train: TrainConfig) -> EngineChoice:
    """Return the engine of a configuration; `auto` offloads nothing."""
    offload = "none" if train.offload == "auto" else train.offload
    engine = train.engine
    if engine == "auto":
        engine = "deepspeed" if train.needs_deepspeed else "torch"
    return EngineChoice(engine, offload, train.zero_stage if engine == "deepspeed" else None)


def build_engine(
    choice: EngineChoice,
    objective: Objective,
    optim: OptimizerConfig,
    *,
    device: torch.device,
    precision: str,
    processes: Processes,
    micro_batch_size: int,
) -> Engine:
    """Return the engine for `objective`, which it may change in place."""
    if choice.engine == "torch":
        return TorchEngine(
            objective, optim, device=device, precision=precision, processes=processes
        )
    from smallbench.train.deepspeed_engine import DeepSpeedEngine

    assert isinstance(optim, AdamWConfig), "the configuration refuses others"
    return DeepSpeedEngine(
        objective,
        optim,
        device=device,
        precision=precision,
        processes=processes,
        offload=choice.offload,
        zero_stage=choice.zero_stage,
        micro_batch_size=micro_batch_size,
    )
