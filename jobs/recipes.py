"""List the pretraining recipes, or explain one of them and print its configuration."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import yaml

from smallbench.config import option, to_dict
from smallbench.jobs.base import Job, start
from smallbench.recipes import RECIPES, recipe_config
from smallbench.recipes.base import Recipe
from smallbench.templates import from_template


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench recipes`."""

    recipe: str | None = option(None, help="explain this one; also FILE.py:NAME")


def run(options: Options) -> None:
    """Print the table, or one recipe."""
    if options.recipe is not None:
        recipe = RECIPES[options.recipe]
        about = recipe.description if isinstance(recipe, Recipe) else recipe.__doc__ or ""
        print(inspect.cleandoc(about), "\n")
        config = to_dict(recipe_config(options.recipe))
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
        return
    recipes = {name: RECIPES[name] for name in RECIPES}
    values = {"recipes": recipes, "installed": RECIPES.installed()}
    print(from_template("smallbench.jobs", "recipes.txt", **values), end="")


JOB = Job("recipes", Options, run, words=("recipe",))

if __name__ == "__main__":
    start(JOB)
