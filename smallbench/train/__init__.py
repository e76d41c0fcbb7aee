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
        "adafactor": "smallbench.train.optim:build_adafactor",
        "adamw": "smallbench.train.optim:build_adamw",
        "muon": "smallbench.train.optim:build_muon",
    },
    group="smallbench.optimizers",
    configs={
        "adafactor": "smallbench.train.config:AdafactorConfig",
        "adamw": "smallbench.train.config:AdamWConfig",
        "muon": "smallbench.train.config:MuonConfig",
    },
    config_base="smallbench.train.config:OptimizerConfig",
)

SCHEDULES = Registry(
    "schedule",
    {
        "constant": "smallbench.train.schedule:constant",
        "cosine": "smallbench.train.schedule:cosine",
        "linear": "smallbench.train.schedule:linear",
    },
    group="smallbench.schedules",
    configs={
        "constant": "smallbench.train.config:ConstantSchedule",
        "cosine": "smallbench.train.config:CosineSchedule",
        "linear": "smallbench.train.config:LinearSchedule",
    },
    config_base="smallbench.train.config:ScheduleConfig",
)
