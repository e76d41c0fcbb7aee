"""The work of a stage: its name, its command's flags, a sweep's rows, a pod's size."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from smallbench.cluster.config import (
    CHAIN,
    MAX_RUN_CHARACTERS,
    MAX_SWEEP_CHARACTERS,
    ClusterConfig,
    RunConfig,
    Stage,
    refuse_credentials,
)
from smallbench.cluster.sizes import GLUE_GIB, PodSizes, largest, sizes_for
from smallbench.config import differing_keys, digest, override_all, to_dict
from smallbench.errors import UsageError
from smallbench.recipes import recipe_config
from smallbench.train.config import PretrainConfig, resumable_keys

OURS = {
    "num_shards": "pods",
    "shard": "pods",
    "grace_seconds": "grace_seconds",
    "max_hours": "hours",
    "variants": "recipes",
}
"""Flags of a stage that repeat a field of the Job → the flag that sets both."""


TRAINS = {"pretrain", "sweep", "ablate"}
READS_GLUE = {"export", "glue", "ablate"}
"""Stages with room for GLUE on their disk."""


@dataclass(frozen=True)
class StageWork:
    """What a stage does: the further flags of its own command."""

    stage: Stage
    run: str
    recipe: str | None = None
    flags: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    """Of a sweep: options of `smallbench pretrain` by key."""
    variants: Sequence[PretrainConfig] = ()
    """Of an ablation."""
    num_seeds: int = 1
    """Of an ablation."""

    @property
    def num_runs(self) -> int:
        """Number of runs of an ablation or a sweep."""
        return len(self.variants) * self.num_seeds or len(self.rows)

    @property
    def trains(self) -> bool:
        """Whether the stage trains a model."""
        return self.stage in TRAINS


def run_id(name: str, changes: Any, longest: int = MAX_RUN_CHARACTERS) -> str:
    """Return a run's name, a function of the recipe's name and its changes."""
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{name[: longest - 9]}-{digest(changes)[:8]}" if changes else name


def words_of(flags: str | None) -> list[str]:
    """Return the words of `--flags`."""
    try:
        words = shlex.split(flags or "")
    except ValueError as error:  # the text itself is not repeated: a secret may be in it
        raise UsageError(f"--flags cannot be read as words: {error}".lower()) from None
    refuse_credentials(words)  # before anybody complains of one by its value
    return words


def flags_of(options: RunConfig) -> list[str]:
    """The words of `--flags`; raises `UsageError` if the manifest has them from other flags."""
    flags = words_of(options.flags)
    for flag in flags:
        name = flag.partition("=")[0].lstrip("-").replace("-", "_")
        if name in OURS:
            raise UsageError(f"--{name} is not for --flags: use --{OURS[name]} of 'smallbench k8s'")
    return flags


def flags_by_stage(flags: str | None) -> dict[str, str]:
    """Cut the `--flags` of a chain, in which each stage's name stands before its flags."""
    found: dict[str, list[str]] = {}
    stage = None
    for word in words_of(flags):
        if word in CHAIN:
            stage = word
        elif stage is None:
            raise UsageError(
                "--flags of 'all' needs the stage before its flags: "
                "--flags='prepare --tokenizer=bpe glue --tasks=cola'"
            )
        else:
            found.setdefault(stage, []).append(word)
    return {stage: shlex.join(words) for stage, words in found.items()}


def work_of(
    stage: Stage, options: RunConfig, config: PretrainConfig | None, hours: float | None = None
) -> StageWork:
    """Return the work of a stage; `config` is its recipe's with the changes."""
    recipe = None if config is None else config.recipe
    changes: dict[str, Any] = {}
    may_change: frozenset[str] = frozenset()
    if config is not None:
        base = to_dict(recipe_config(config.recipe))
        changes = {key: new for key, (_, new) in differing_keys(base, to_dict(config)).items()}
        may_change = resumable_keys(config)
    flags = flags_of(options)
    if stage == "sweep":
        limit = {} if hours is None else {"max_hours": hours}
        names: list[str | None] = [recipe]
        if options.recipes:  # a file's without its folder
            names = [recipe_config(name).recipe for name in options.recipes]
        rates = [{"optim.learning_rate": rate} for rate in options.learning_rates] or [{}]
        rows: list[dict[str, Any]] = [
            {"recipe": one, **changes, **rate, **limit} for one, rate in product(names, rates)
        ]
        left_out = {*may_change, "max_hours"}  # with more hours a sweep goes on
        learns = [{key: row[key] for key in row if key not in left_out} for row in rows]
        name = options.run or run_id(recipe or "recipes", learns, MAX_SWEEP_CHARACTERS)
        return StageWork(stage, name, recipe, flags, rows)
    if stage == "pretrain":
        flags += [f"--{key}={flag_value(value)}" for key, value in changes.items()]
        flags += [] if hours is None else [f"--max_hours={hours}"]
    # A change that a run may continue with does not change its name.
    learned = {key: value for key, value in changes.items() if key not in may_change}
    return StageWork(stage, options.run or run_id(recipe or "corpus", learned), recipe, flags)


def ablation_of(
    options: RunConfig, variants: Sequence[PretrainConfig], num_seeds: int
) -> StageWork:
    """Return the work of an ablation; `variants` have their budget.

    Its name is a function of the baseline and the budget: more seeds and variants join it.
    """
    baseline = variants[0]
    may_change = resumable_keys(baseline)
    base = to_dict(recipe_config(baseline.recipe))
    changes = differing_keys(base, to_dict(baseline)).items()
    learned = {key: new for key, (_, new) in changes if key not in may_change}
    names = ",".join(variant.recipe for variant in variants)
    return StageWork(
        "ablate",
        options.run or run_id(baseline.recipe, learned),
        flags=[f"--variants={names}", *flags_of(options)],
        variants=variants,
        num_seeds=num_seeds,
    )


def flag_value(value: Any) -> str:
    """Return a value as a flag takes it; a list is joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def sizes_of(
    work: StageWork, options: ClusterConfig, config: PretrainConfig | None
) -> PodSizes | None:
    """Return the planner's sizes; None if the stage needs no model, or no recipe is named."""
    configs = [*work.variants] or [
        override_all(recipe_config(row["recipe"]), {k: v for k, v in row.items() if "." in k})
        for row in work.rows
    ]
    if config is not None and not configs:
        configs = [config]
    if not configs or work.stage in {"prepare", "leaderboard"}:
        return None
    # Learning rates do not change a size.
    different = {repr((c.recipe, c.model, c.train, c.objective)): c for c in configs}
    room = ((options.corpus_gib, TRAINS), (GLUE_GIB, READS_GLUE))
    data_gib = sum(size for size, stages in room if work.stage in stages)
    return largest(
        [
            sizes_for(each, options.gpu, data_gib=data_gib, hours=options.hours)
            for each in different.values()
        ]
    )
