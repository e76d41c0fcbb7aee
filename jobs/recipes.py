"""List the pretraining recipes, or explain one of them and print its configuration."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass

import yaml

from jobs.base import Job
from smallbench.config import option, to_dict
from smallbench.recipes import RECIPES


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench recipes`."""

    recipe: str | None = option(None, help="explain this one")


def run(options: Options) -> None:
    """Print the table, or one recipe."""
    if options.recipe is not None:
        recipe = RECIPES[options.recipe]
        print(inspect.cleandoc(recipe.description), "\n")
        print(yaml.safe_dump(to_dict(recipe()), sort_keys=False), end="")
        return
    for name in RECIPES:
        recipe = RECIPES[name]
        print(
            f"{name}\n    size      {recipe.parameters} parameters\n    source    {recipe.source}"
        )
        print(f"    budget    {recipe.budget}\n    expected  {recipe.expected}\n")
    print("One in full: smallbench recipes NAME. Train it: smallbench pretrain NAME --help")


JOB = Job(
    name="recipes",
    options=Options,
    run=run,
    words=("recipe",),
    examples=("smallbench recipes", "smallbench recipes bert-small"),
)

if __name__ == "__main__":
    from jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
