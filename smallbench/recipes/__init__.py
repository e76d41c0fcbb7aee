"""Named, complete configurations. Each function's docstring says where its numbers come from.

`RECIPES` is the table; a recipe is a function without arguments that returns a `PretrainConfig`.
"""

from dataclasses import replace

from smallbench.errors import ConfigError
from smallbench.registry import Registry
from smallbench.train.config import PretrainConfig

RECIPES = Registry(
    "recipe",
    {
        "bert-1.5b": "smallbench.recipes.large:bert_1_5b",
        "bert-base": "smallbench.recipes.large:bert_base",
        "bert-large": "smallbench.recipes.large:bert_large",
        "bert-small": "smallbench.recipes.bert:bert_small",
        "bert-tiny": "smallbench.recipes.bert:bert_tiny",
        "deberta-small": "smallbench.recipes.deberta:deberta_small",
        "deberta-tiny": "smallbench.recipes.deberta:deberta_tiny",
        "deberta-xlarge": "smallbench.recipes.large:deberta_xlarge",
        "electra-deberta-small": "smallbench.recipes.electra:electra_deberta_small",
        "electra-deberta-tiny": "smallbench.recipes.electra:electra_deberta_tiny",
        "electra-small": "smallbench.recipes.electra:electra_small",
        "electra-tiny": "smallbench.recipes.electra:electra_tiny",
        "modern-small": "smallbench.recipes.modern:modern_small",
        "modern-tiny": "smallbench.recipes.modern:modern_tiny",
        "roberta-small": "smallbench.recipes.roberta:roberta_small",
        "roberta-tiny": "smallbench.recipes.roberta:roberta_tiny",
    },
    group="smallbench.recipes",
)


def recipe_config(name: str) -> PretrainConfig:
    """The configuration of a recipe, with the name by which it is found again."""
    config = RECIPES[name]()
    if not isinstance(config, PretrainConfig):
        raise ConfigError(
            f"the recipe {name} returns {type(config).__name__}; expected a "
            "smallbench.train.config.PretrainConfig"
        )
    return replace(config, recipe=RECIPES.canonical(name))
