"""The runs of an ablation: one configuration for each variant and seed, checked beforehand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from smallbench.config import differing_keys, digest, from_dict, keys_of, override_all, to_dict
from smallbench.errors import ConfigError, DataError, nearest
from smallbench.recipes import recipe_config
from smallbench.train.config import PretrainConfig

PLAN = "plan.json"
PART = re.compile(r"\w[\w.-]*")
"""Of a path, so that a plan that somebody else wrote names no folder outside the ablation's."""

OWN_KEYS = ("train.seed", "train.max_flops", "train.max_hours", "schedule.along")
"""Keys that an ablation sets itself: all runs have one budget, and the seeds come from --seeds."""


ENOUGH_WARMUP_STEPS = 100
"""bert-tiny learned nothing in 660 steps after a warm-up of 13, and did after one of 99."""


@dataclass(frozen=True)
class Variant:
    """A recipe with what all variants are given."""

    name: str
    folder: str
    """Its name as one part of a path."""
    config: PretrainConfig
    given: tuple[str, ...]
    """Keys of --set that it has."""


@dataclass(frozen=True)
class PlannedRun:
    """One pretraining."""

    variant: str
    seed: int
    run_dir: Path
    place: str
    """Its number among all runs: `5/9`."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder below the ablation's."""
        return f"{self.run_dir.parent.name}/{self.run_dir.name}"


@dataclass(frozen=True)
class Scoring:
    """GLUE of every run: one learning rate, and the same seeds for every task."""

    tasks: tuple[str, ...]
    learning_rate: float
    seeds: tuple[int, ...]
    folder: str
    """Where a run directory keeps its fine-tunings; another setting gets another folder."""
    protocol: str
    """All of that in a sentence, for readers of the tables."""


@dataclass(frozen=True)
class Design:
    """What the tables are made of, beside the outcomes; kept as `plan.json`."""

    flops: float
    seeds: tuple[int, ...]
    folders: Mapping[str, str]
    """Variant → its folder; the first variant is the baseline."""
    measured: Mapping[str, Mapping[str, Any]]
    """Variant → the keys that decide which loss its held-out loss is."""
    warmup_fractions: Mapping[str, float]
    scoring: Scoring | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.folders)

    def runs(self, out: Path) -> list[PlannedRun]:
        """Return the runs in their order: seed after seed, so that every pair is complete early."""
        pairs = [(seed, variant) for seed in self.seeds for variant in self.folders]
        return [
            PlannedRun(
                variant, seed, out / self.folders[variant] / f"seed-{seed}",
                f"{number}/{len(pairs)}",
            )
            for number, (seed, variant) in enumerate(pairs, 1)
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`."""
        return {"schema_version": 1, **asdict(self)}


def design_of(
    variants: Sequence[Variant], seeds: Sequence[int], *, flops: float, scoring: Scoring | None
) -> Design:
    """Return the design of an ablation."""
    return Design(
        flops,
        tuple(seeds),
        {variant.name: variant.folder for variant in variants},
        {variant.name: _measured(variant.config) for variant in variants},
        {variant.name: variant.config.schedule.warmup_fraction for variant in variants},
        scoring,
    )


def read_design(content: Mapping[str, Any], name: str) -> Design:
    """Return the design in the content of the `plan.json` called `name`; raises `DataError`."""
    try:
        version = content.get("schema_version")
        if version != 1:
            raise ValueError(f"schema_version {version!r}, expected 1")
        kept = {key: value for key, value in content.items() if key != "schema_version"}
        design = from_dict(Design, kept)
        scoring, names = design.scoring, design.folders.keys()
        for folder in (*design.folders.values(), *([scoring.folder] if scoring else [])):
            if not PART.fullmatch(folder):
                raise ValueError(f"{folder!r} is not the name of a folder")
        if not (design.seeds and names == design.measured.keys() == design.warmup_fractions.keys()):
            raise ValueError("seeds or variants are missing")
        return design
    except ValueError as error:
        raise DataError(
            f"{name} is not the plan of an ablation that this version can read ({error}); start "
            "the ablation again with this version"
        ) from None


def variants_of(names: Sequence[str], *, flops: float, changes: Mapping[str, str]) -> list[Variant]:
    """Return the variants, each with the budget and with `changes`.

    A key goes to those variants that have it. Raises `ConfigError` for unknown recipes and keys,
    and if two variants are the same.
    """
    for key in OWN_KEYS:
        if key in changes:
            raise ConfigError(
                f"Invalid {flag_of_key(key)}={changes[key]}: 'ablate' sets {key} itself, from "
                "--flops and --seeds"
            )
    recipes = [recipe_config(name) for name in names]
    known = [keys_of(recipe, changes) for recipe in recipes]
    for key in changes:
        if not any(key in keys for keys in known):
            every = {name for keys in known for name in keys if ("." in name) == ("." in key)}
            ending = nearest(key, every, prefix=flag_of_key(key).removesuffix(key))
            raise ConfigError(f"unknown {flag_of_key(key)}; {ending}")
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


def flag_of_key(key: str) -> str:
    """Return a key as a user writes it: `--SECTION.KEY`, or `--set=KEY` if it has no section."""
    return f"--{key}" if "." in key else f"--set={key}"


def changes_of(words: Sequence[str]) -> dict[str, str]:
    """Return the keys and values of `KEY=VALUE` words. Raises `ConfigError`."""
    changes: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ConfigError(f"Invalid --set={word}: expected KEY=VALUE, for example "
                              "train.global_batch_size=64")  # fmt: skip
        if key in changes:
            raise ConfigError(f"{flag_of_key(key)} is given twice; leave one of them out")
        changes[key] = value
    return changes


def _measured(config: PretrainConfig) -> dict[str, Any]:
    # Held-out rows are masked as at step 0, and none has related segments.
    others = ("final_mask_fraction", "related_")
    values = to_dict(config.objective).items()
    keys = {f"objective.{key}": value for key, value in values if not key.startswith(others)}
    return {**keys, "train.num_eval_rows": config.train.num_eval_rows}


def warmup_caution(fraction: float, steps: int) -> str:
    """Return what to say of a short warm-up; nothing if it is long enough, or the run too short.

    A budget that is a tenth of a recipe's makes its warm-up a tenth too, but what an optimizer
    needs is a number of steps: docs/ablations.md has the losses.
    """
    warmup = round(fraction * steps)
    if warmup >= ENOUGH_WARMUP_STEPS or steps < 2 * ENOUGH_WARMUP_STEPS:
        return ""
    enough = math.ceil(100 * ENOUGH_WARMUP_STEPS / steps) / 100
    return (
        f"the learning rate rises over {warmup} steps only, and a variant may not begin to learn; "
        f"{ENOUGH_WARMUP_STEPS} steps: --schedule.warmup_fraction={enough:g}"
    )


def differing_measurement(design: Design, first: str, other: str) -> tuple[str, bool]:
    """Return how the held-out losses of two variants differ, and whether they are comparable.

    The sentence is empty if both are the same loss. Segments change it little; any other value of
    the objective makes it another loss, which gives True.
    """
    different = differing_keys(design.measured[first], design.measured[other])
    if not different:
        return "", False
    listed = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in different.items())
    if different.keys() == {"objective.two_segment_fraction"}:
        return (
            f"held-out rows of {other} have other segments than those of {first} "
            f"({listed}), so a small difference of their losses means nothing"
        ), False
    return f"{other} is measured by another loss than {first} ({listed})", True
