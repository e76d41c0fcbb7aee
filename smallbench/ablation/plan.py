"""The runs of an ablation: one configuration for each variant and seed, checked beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from smallbench.config import differing_keys, digest, keys_of, override_all, to_dict
from smallbench.errors import ConfigError, nearest
from smallbench.recipes import recipe_config
from smallbench.train.config import PretrainConfig

OWN_KEYS = ("train.seed", "train.max_flops", "train.max_hours", "schedule.along")
"""Keys that an ablation sets itself: all runs have one budget, and the seeds come from --seeds."""


@dataclass(frozen=True)
class Variant:
    """A recipe with what all variants are given."""

    name: str
    folder: str
    """Its name as one part of a path."""
    config: PretrainConfig
    given: tuple[str, ...]
    """Keys of --set that it has."""

    def with_seed(self, seed: int) -> PretrainConfig:
        """Return the configuration of one run."""
        return replace(self.config, train=replace(self.config.train, seed=seed))


@dataclass(frozen=True)
class PlannedRun:
    """One pretraining."""

    variant: Variant
    seed: int
    run_dir: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def config(self) -> PretrainConfig:
        """The configuration of the run."""
        return self.variant.with_seed(self.seed)


def variants_of(names: Sequence[str], *, flops: float, changes: Mapping[str, str]) -> list[Variant]:
    """Return the variants, each with the budget and with `changes`.

    A key goes to those variants that have it. Raises `ConfigError` for unknown recipes and keys,
    and if two variants are the same.
    """
    for key in OWN_KEYS:
        if key in changes:
            raise ConfigError(
                f"Invalid --set={key}={changes[key]}: 'ablate' sets {key} itself, from --flops and "
                "--seeds"
            )
    recipes = [recipe_config(name) for name in names]
    known = [keys_of(recipe, changes) for recipe in recipes]
    for key in changes:
        if not any(key in keys for keys in known):
            every = {name for keys in known for name in keys}
            raise ConfigError(f"unknown --set={key}; {nearest(key, every)}")
    own = {"train.max_flops": flops, "train.max_hours": None, "schedule.along": "flops"}
    variants = []
    for recipe, keys in zip(recipes, known, strict=True):
        given = {key: value for key, value in changes.items() if key in keys}
        config = override_all(recipe, {**given, **own})
        variants.append(Variant(config.recipe, _folder(config.recipe), config, tuple(given)))
    for one, other in combinations(variants, 2):
        if one.folder == other.folder:
            raise ConfigError(f"the variant {one.name} is given twice; leave one of them out")
        if digest(replace(one.config, recipe="")) == digest(replace(other.config, recipe="")):
            raise ConfigError(
                f"the variants {one.name} and {other.name} are the same configuration; leave one "
                "of them out"
            )
    return variants


def _folder(name: str) -> str:
    """`my_idea.py:gated` → `my_idea.gated`."""
    place, _, attribute = name.rpartition(":")
    return f"{place.removesuffix('.py')}.{attribute}" if place else name


def changes_of(words: Sequence[str]) -> dict[str, str]:
    """Return the keys and values of `KEY=VALUE` words. Raises `ConfigError`."""
    changes: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ConfigError(f"Invalid --set={word}: expected KEY=VALUE, for example "
                              "train.global_batch_size=64")  # fmt: skip
        if key in changes:
            raise ConfigError(f"--set gives {key} twice; leave one of them out")
        changes[key] = value
    return changes


def planned_runs(variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[PlannedRun]:
    """Return the runs in their order: seed after seed, so that every pair is complete early."""
    return [
        PlannedRun(variant, seed, out / variant.folder / f"seed-{seed}")
        for seed in seeds
        for variant in variants
    ]


def differing_measurement(first: Variant, other: Variant) -> tuple[str, bool]:
    """Return how the held-out losses of two variants differ, and whether they are comparable.

    The sentence is empty if both are the same loss. Segments change it little; any other value of
    the objective makes it another loss, which gives True.
    """
    measured = []
    for variant in (first, other):
        keys = {f"objective.{k}": value for k, value in to_dict(variant.config.objective).items()}
        keys.pop("objective.final_mask_fraction", None)  # held-out rows are masked as at step 0
        measured.append({**keys, "train.num_eval_rows": variant.config.train.num_eval_rows})
    different = differing_keys(*measured)
    if not different:
        return "", False
    listed = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in different.items())
    if different.keys() == {"objective.two_segment_fraction"}:
        return (
            f"held-out rows of {other.name} have other segments than those of {first.name} "
            f"({listed}), so a small difference of their losses means nothing"
        ), False
    return f"{other.name} is measured by another loss than {first.name} ({listed})", True
