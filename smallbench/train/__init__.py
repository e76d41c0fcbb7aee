"""Training: one loop, its engines, checkpoints and what surrounds it.

A row of `OPTIMIZERS` is `build(module, config) -> torch.optim.Optimizer`; a row of `SCHEDULES` is
`schedule(fraction, config) -> float`, see `train.schedule`.
"""

from smallbench.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adafactor": "smallbench.train.optim:build_adafactor",
        "adamw": "smallbench.train.optim:build_adamw",
        "muon": "smallbench.train.optim:build_muon",
    },
)

SCHEDULES = Registry(
    "schedule",
    {
        "constant": "smallbench.train.schedule:constant",
        "cosine": "smallbench.train.schedule:cosine",
        "linear": "smallbench.train.schedule:linear",
    },
)
