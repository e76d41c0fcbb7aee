"""The engine: where a loss becomes an update. `TorchEngine` is plain PyTorch on one device.

The trainer knows the protocol only, so that another engine (offloading, sharding) can stand here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smallbench.train.config import OptimConfig
from smallbench.train.memory import keep_freed_memory
from smallbench.train.optim import build_adamw
from smallbench.train.precision import DTYPES


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    grad_norm: float
    """Norm of the whole gradient before clipping; may be non-finite."""
    skipped: bool
    """True where the gradient was not finite and the weights were left alone."""


class Engine(Protocol):
    """Owns the module's gradients, the optimizer and the loss scale."""

    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass in the engine's precision."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (one micro-batch's share of the step's loss)."""
        ...

    def step(self, *, learning_rate: float) -> Update:
        """Clip, update, clear the gradients; skip the update where they are not finite."""
        ...

    def discard_gradients(self) -> None:
        """Forget what `backward` has added since the last step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and loss scale; the weights are the module's."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


class TorchEngine:
    """One process, one device, AdamW, mixed precision by autocast over float32 weights."""

    def __init__(
        self, module: nn.Module, optim: OptimConfig, *, device: torch.device, precision: str
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.module = module.to(device)
        self.precision = precision
        self.clip_norm = optim.clip_norm
        self.optimizer = build_adamw(module, optim)
        # fp16 alone needs its loss scaled: bf16 has the exponent range of fp32.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 or fp16, or nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, scaled under fp16."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, *, learning_rate: float) -> Update:
        """One AdamW step at `learning_rate`, or none where the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm).item()
        finite = norm == norm and norm != float("inf")
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # the scaler looks for non-finite values itself
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(grad_norm=norm, skipped=not finite)

    def discard_gradients(self) -> None:
        """Forget what `backward` has added since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and loss scale."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
