"""Training: the one loop, and what a step is made of; for pretraining and fine-tuning alike.

A row of `OPTIMIZERS` is `build(module, config) -> torch.optim.Optimizer`; a row of `SCHEDULES` is
`schedule(fraction, config) -> float`, see `train.schedule`. An optimizer of your own needs no row:
write such a function in a file, with `config` annotated by a frozen dataclass that extends
`OptimizerConfig`, and name it: `--optim.optimizer=my_file.py:build`.
"""

from smallbench.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adafactor": ("smallbench.train.optim:build_adafactor", "AdafactorConfig"),
        "adamw": ("smallbench.train.optim:build_adamw", "AdamWConfig"),
        "muon": ("smallbench.train.optim:build_muon", "MuonConfig"),
    },
    group="smallbench.optimizers",
    config_base="smallbench.train.config:OptimizerConfig",
)

SCHEDULES = Registry(
    "schedule",
    {
        "constant": ("smallbench.train.schedule:constant", "ConstantSchedule"),
        "cosine": ("smallbench.train.schedule:cosine", "CosineSchedule"),
        "linear": ("smallbench.train.schedule:linear", "LinearSchedule"),
    },
    group="smallbench.schedules",
    config_base="smallbench.train.config:ScheduleConfig",
)
