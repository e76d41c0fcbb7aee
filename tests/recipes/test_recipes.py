"""The contract of the recipes table."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from smallbench.config import digest, from_dict, to_dict
from smallbench.gpus import gpu_of
from smallbench.jobs import enter
from smallbench.leaderboard.compute import train_flops
from smallbench.leaderboard.entry import Stage
from smallbench.leaderboard.track_table import TRACKS
from smallbench.models import ARCHITECTURES
from smallbench.models.flops import SCORE_TERMS
from smallbench.objectives import OBJECTIVES
from smallbench.planning.gpu_plan import make_plan
from smallbench.planning.planner import Planner
from smallbench.recipes import RECIPES
from smallbench.train.config import PretrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_says_where_it_comes_from(name):
    recipe = RECIPES[name]
    config = recipe()
    assert config.recipe == name
    assert len(recipe.description) > 100
    for fact in (recipe.parameters, recipe.source, recipe.budget, recipe.expected):
        assert fact
    assert from_dict(PretrainConfig, to_dict(config)) == config
    assert digest(recipe()) == digest(config), "building it twice gives the same"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_many_parameters_it_has(name):
    """To its last digit, with the vocabulary that it names."""
    recipe = RECIPES[name]
    number, _, vocabulary = recipe.parameters.partition("M parameters")
    config = recipe()
    model, head = config.model, OBJECTIVES[config.objective.objective].head
    if model.vocab_size is None:
        size = int(vocabulary.split()[-2].replace(",", ""))
        model = dataclasses.replace(model, vocab_size=size)
    with torch.device("meta"):  # a billion weights need not be drawn to be counted
        built = ARCHITECTURES[model.architecture](model, head=head)
    count = sum(parameter.numel() for parameter in built.parameters())
    assert count / 1e6 == pytest.approx(float(number), abs=0.06)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("bert-small", 13.5),
        ("roberta-small", 22.4),
        ("deberta-small", 15.1),
        ("electra-small", 13.5),
        ("electra-deberta-small", 15.1),
    ],
)
def test_the_papers_systems_have_its_sizes(name, millions):
    """arXiv 2109.10847, within 1 %; of ELECTRA's pairs, the discriminator."""
    config = RECIPES[name]()
    head = OBJECTIVES[config.objective.objective].head
    built = ARCHITECTURES[config.model.architecture](config.model, head=head)
    count = sum(p.numel() for p in built.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-tiny")])
def test_a_tiny_recipe_keeps_the_limit_of_its_track_by_both_counts(name):
    """The trainer counts the masked tokens that it draws, the board those to expect."""
    config = enter.config(enter.Options(track="tiny", recipe=name, data="d", glue="g", out="o"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=8192))
    train, limit = config.train, TRACKS["tiny"].max_train_flops
    planner = Planner(config, device_type="cpu", precision="fp32")
    per_step = planner.flops_per_token() * train.global_batch_size * config.sequence_length
    steps = math.ceil(train.max_flops / per_step)
    counted = steps * per_step
    if config.model.architecture in SCORE_TERMS:
        objective = config.objective
        related = objective.related_fraction
        of_related = getattr(objective, "related_mask_fraction", 0.0)
        counted = train_flops(
            config.model,
            [Stage(steps, train.global_batch_size, config.sequence_length)],
            objective=objective.objective,
            mask_fraction=(1 - related) * objective.mask_fraction + related * of_related,
            generator_width=getattr(objective, "generator_width", 0.25),
        )
    assert 0.98 * limit < steps * per_step <= counted <= limit
    assert f"{steps:,} steps" in RECIPES[name].budget


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-small")])
def test_the_hours_of_a_small_recipe_are_those_of_its_plan(name):
    hours = make_plan(RECIPES[name](), gpu_of("v100-16gb"), compares=False).whole.hours
    fast, slow = (f"{bound:.0f}" for bound in hours)
    assert f"; {fast} to {slow} hours of a V100, planned, not measured" in RECIPES[name].budget


def test_listing_recipes_needs_no_torch():
    program = (
        "import sys; from smallbench.recipes import RECIPES; [RECIPES[n]() for n in RECIPES];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
