"""The optimizer: AdamW with the decay groups that every recipe here uses."""

from __future__ import annotations

import torch
from torch import nn

from smallbench.train.config import OptimConfig


def build_adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters of `module`.

    Vectors (biases, norms) do not decay (google-research/bert `optimization.py`). Groups hold
    their parameters in the module's order, which makes the optimizer's state portable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
