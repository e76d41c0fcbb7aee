"""The optimizers: functions `(module, config)`.

One of your own needs no change here: write such a function in a file, with `config` annotated by a
frozen dataclass that extends `train.config.OptimizerConfig`, and select it with
`pretrain --optim.optimizer=my_file.py:build`. Built-in ones are rows of `train.OPTIMIZERS`.

Groups keep the module's order. The state is saved by the parameters' names, so it does not depend
on groups or on the engine. PyTorch's `distributed.checkpoint.state_dict` also does this, but
creates a missing state by doing a step, and a run that has not begun has no gradients for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smallbench.errors import ConfigError, DataError
from smallbench.train import OPTIMIZERS
from smallbench.train.config import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig
from smallbench.train.precision import DTYPES, choose_precision

States = dict[str, dict[str, Any]]
"""Parameter's name → its state, by the optimizer's own names."""


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over the trainable parameters of `module`."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS[config.optimizer](module, config)
    return optimizer


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return a group of matrices, which decay, and one of biases and norms, which do not.

    As google-research/bert's `optimization.py`.
    """
    parameters = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(module: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Return fused AdamW."""
    return _adamw(module.parameters(), config)


def _adamw(parameters: Iterable[Tensor], config: AdamWConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        decay_groups(parameters, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def build_muon(module: nn.Module, config: MuonConfig) -> torch.optim.Optimizer:
    """Return Muon for the matrices of hidden layers, AdamW for embeddings, heads and vectors.

    Hidden layers are those in a `ModuleList`. An update's spectral norm is the learning rate times
    √max(1, rows / columns) (Jordan et al. 2024). Scaled to AdamW's root mean square instead (Liu et
    al. 2025, arXiv 2502.16982, §2.2), the projection back from the feed-forward layer moved too far
    for modern-tiny to find its head for equal tokens (docs/ablations.md).
    """
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    inside = {p for stack in stacks for p in stack.parameters()}
    tables = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    hidden = [p for p in module.parameters() if p in inside - tables and p.ndim == 2]
    hidden = [p for p in hidden if p.requires_grad]
    if not hidden:
        raise ConfigError(
            "optim.optimizer 'muon' requires matrices in a torch.nn.ModuleList, which this model "
            "does not have; use 'adamw'"
        )
    chosen = set(hidden)
    muon = Muon(
        [{"params": hidden, "lr_scale": config.matrix_scale}],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
    return Combined(muon, _adamw([p for p in module.parameters() if p not in chosen], config))


def build_adafactor(module: nn.Module, config: AdafactorConfig) -> torch.optim.Optimizer:
    """Return Adafactor (Shazeer & Stern 2018, arXiv 1804.04235).

    A matrix's second moments are kept as one row and one column, so the state takes almost no
    memory. The learning rate is relative to the root mean square of each parameter.
    """
    return torch.optim.Adafactor(
        decay_groups(module.parameters(), config.weight_decay),
        lr=config.learning_rate,
        beta2_decay=config.beta2_decay,
        d=config.clip_threshold,
    )


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum (Jordan et al. 2024) of matrices.

    As `torch.optim.Muon`, which multiplies in bf16 on every device. A V100 and older CPUs emulate
    bf16: on such a CPU, `orthogonalized` of 512 x 128 took 20 times as long as in fp32.
    """

    def __init__(self, params: Any, *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move each matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalized(gradient.lerp(average, group["momentum"]))
        num_rows, num_columns = parameter.shape
        scale = max(1, num_rows / num_columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U S V^T for `matrix` = U D V^T, in the fastest type of its device.

    The values of S are between about 0.7 and 1.2, unless a value of D is far below the largest.
    Five iterations of Newton and Schulz, with the coefficients of Jordan et al. 2024.
    """
    dtype = DTYPES[choose_precision("auto", matrix.device)]
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Combined(torch.optim.Optimizer):
    """Several optimizers over different parameters that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        # The base class's would copy the groups, and loading a state replaces those of each part.
        self.optimizers = optimizers
        self.defaults = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all parts, not copies of them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step each part."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of each part."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def parts_of(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimizers that hold the state: those of a `Combined`, or the one itself."""
    return optimizer.optimizers if isinstance(optimizer, Combined) else (optimizer,)


def states_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> States:
    """Return the state of each parameter by its name; empty before the first step."""
    found = {p: state for part in parts_of(optimizer) for p, state in part.state.items()}
    return {n: dict(found[p]) for n, p in module.named_parameters() if found.get(p)}


def load_states(module: nn.Module, optimizer: torch.optim.Optimizer, states: States) -> None:
    """Load what `states_of` returned."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    for part in parts_of(optimizer):
        content = part.state_dict()
        order = [p for group in part.param_groups for p in group["params"]]
        content["state"] = {
            # Copied: optimizers update in place, and a checkpoint's tensors are a file's pages.
            index: {k: _own(v, p.device) for k, v in states[names[p]].items()}
            for index, p in enumerate(order)
            if names[p] in states
        }
        part.load_state_dict(content)


def _own(value: Any, device: torch.device) -> Any:
    """Return a copy, unless the optimizer makes one on its way to another device."""
    is_taken = isinstance(value, Tensor) and (value.ndim == 0 or value.device == device)
    return value.clone() if is_taken else value


def check_states(saved: Mapping[str, Any], kind: str, shapes: Mapping[str, torch.Size]) -> States:
    """Return the states of a checkpoint's optimizer.

    Raises `DataError` if they are another optimizer's, or those of other parameters.
    """
    if saved.get("optimizer") != kind:
        raise DataError(
            f"the checkpoint has the state of the optimizer {saved.get('optimizer')!r}, but this "
            f"run uses {kind!r}; start a new run, with --init_from to keep the weights"
        )
    states: States = saved["states"]
    for name, state in states.items():
        if name not in shapes:
            raise DataError(f"the checkpoint has an optimizer state of {name!r}, an unknown weight")
        for key, value in state.items():
            if isinstance(value, Tensor) and not _fits(value.shape, shapes[name]):
                raise DataError(
                    f"the checkpoint's optimizer state {key!r} of {name!r} has the shape "
                    f"{list(value.shape)}, expected {list(shapes[name])}"
                )
    return states


def _fits(shape: torch.Size, parameter: torch.Size) -> bool:
    """Return whether a state fits a parameter: a scalar, its shape, or a factor of it."""
    if not shape:
        return True
    pairs = zip(shape, parameter, strict=False)
    return len(shape) == len(parameter) and all(a in {1, b} for a, b in pairs)


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, in torch and in DeepSpeed."""
