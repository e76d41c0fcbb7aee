"""Pretraining and fine-tuning objectives: corrupt a batch, count its targets, sum its losses."""

from smallbench.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "masked_lm": ("smallbench.objectives.masked_lm:MaskedLM", "MaskedLMConfig"),
        "replaced_token": (
            "smallbench.objectives.replaced_token:ReplacedToken",
            "ReplacedTokenConfig",
        ),
    },
    group="smallbench.objectives",
    base="smallbench.objectives.base:PretrainObjective",
    config_base="smallbench.objectives.config:ObjectiveConfig",
)
