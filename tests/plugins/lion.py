"""Lion (Chen et al. 2023, arXiv 2302.06675): the sign of a moving average is the step."""

from dataclasses import dataclass

import torch
from torch import nn

from smallbench.config import option, require
from smallbench.train.config import OptimizerConfig
from smallbench.train.optim import decay_groups


@dataclass(frozen=True)
class LionConfig(OptimizerConfig):
    """Lion's keys; its learning rate is a third to a tenth of AdamW's (§5)."""

    learning_rate: float = option(3e-4, help="peak learning rate")
    weight_decay: float = 0.1
    beta1: float = option(0.9, help="weight of the average in a step")
    beta2: float = option(0.99, help="decay of the average")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "[0, 1)")


class Lion(torch.optim.Optimizer):
    """Keeps one average for each parameter, half of AdamW's state."""

    def __init__(self, groups: list[dict[str, object]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                update = average.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
                average.lerp_(parameter.grad, 1 - beta2)


def lion(module: nn.Module, config: LionConfig) -> torch.optim.Optimizer:
    """Vectors do not decay, as with AdamW."""
    groups = decay_groups(module.parameters(), config.weight_decay)
    return Lion(groups, config.learning_rate, (config.beta1, config.beta2))
