"""Named, complete configurations. Each function's docstring says where its numbers come from.

`RECIPES` is the table; a recipe is a function without arguments that returns a `PretrainConfig`.
"""

from smallbench.registry import Registry

RECIPES = Registry(
    "recipe",
    {
        "bert-small": "smallbench.recipes.bert:bert_small",
        "bert-tiny": "smallbench.recipes.bert:bert_tiny",
    },
)
