"""Pretraining and fine-tuning objectives: corrupt a batch, count its targets, sum its losses."""

from smallbench.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "masked_lm": "smallbench.objectives.masked_lm:MaskedLM",
        "replaced_token": "smallbench.objectives.replaced_token:ReplacedToken",
    },
    group="smallbench.objectives",
    base="smallbench.objectives.base:PretrainObjective",
    configs={
        "masked_lm": "smallbench.objectives.config:MaskedLMConfig",
        "replaced_token": "smallbench.objectives.config:ReplacedTokenConfig",
    },
    config_base="smallbench.objectives.config:ObjectiveConfig",
)
