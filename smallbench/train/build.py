"""The parts of a run as its configuration defines them: data, objective, batches, budget, rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from smallbench.checkpoints.record import PLUGINS, Record
from smallbench.config import digest, from_dict, to_dict
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import TokenizerInfo, TokenRows
from smallbench.data.tokenizer import Tokenizer
from smallbench.errors import ConfigError
from smallbench.objectives import OBJECTIVES
from smallbench.objectives.base import PretrainObjective
from smallbench.objectives.masking import Vocabulary
from smallbench.plugins import use_copies
from smallbench.train.batches import BatchSource, CorruptedRows, TwoPhases
from smallbench.train.budget import Budget, Progress
from smallbench.train.config import PretrainConfig, plugins_of
from smallbench.train.schedule import ramped_batch_size, rate_factor, schedule_of


@dataclass(frozen=True)
class Corpus:
    """The rows that a run reads."""

    rows: TokenRows
    held_out: TokenRows
    then: TokenRows | None
    """The longer rows of the second phase."""


def open_corpus(data: Path, then_data: Path | None = None) -> Corpus:
    """Open prepared directories."""
    then = None if then_data is None else TokenRows(then_data, "train")
    return Corpus(TokenRows(data, "train"), TokenRows(data, "eval"), then)


def fit_to_data(config: PretrainConfig, corpus: Corpus) -> PretrainConfig:
    """Return `config` with the values that the data decide.

    Raises `ConfigError` if the two contradict each other.
    """
    rows = corpus.rows
    if config.sequence_length != rows.sequence_length:
        raise ConfigError(
            f"sequence_length {config.sequence_length} != {rows.sequence_length} of the prepared "
            "corpus; run 'smallbench prepare' again with --sequence_length, or set this one"
        )
    config = _fit_second_phase(config, corpus)
    vocab_size = rows.tokenizer.vocab_size
    if config.model.vocab_size is None:
        return replace(config, model=replace(config.model, vocab_size=vocab_size))
    if config.model.vocab_size != vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} != the tokenizer's {vocab_size}; set "
            "--model.vocab_size=none to take the tokenizer's, or run 'smallbench prepare' again "
            "with another --vocab_size"
        )
    return config


def _fit_second_phase(config: PretrainConfig, corpus: Corpus) -> PretrainConfig:
    then, length = corpus.then, config.then.sequence_length
    if then is None:
        if length is not None:
            raise ConfigError(
                f"then.sequence_length {length} needs --then_data: a corpus that 'smallbench "
                f"prepare --sequence_length={length}' wrote"
            )
        return config
    if length not in {None, then.sequence_length}:
        raise ConfigError(
            f"then.sequence_length {length} != {then.sequence_length} of --then_data; leave it out"
        )
    if then.tokenizer.fingerprint != corpus.rows.tokenizer.fingerprint:
        raise ConfigError(
            "--then_data was prepared with another tokenizer than --data; prepare it again with "
            "--tokenizer set to the 'tokenizer' folder in --data"
        )
    shards = shards_digest(then)
    if config.then.corpus not in {None, shards}:
        raise ConfigError("--then_data is another corpus than then.corpus names; leave that out")
    phase = replace(config.then, sequence_length=then.sequence_length, corpus=shards)
    return replace(config, then=phase)


def record_of(config: PretrainConfig, rows: TokenRows, data: Path) -> Record:
    """Return what the record of a run says about its configuration and corpus."""
    manifest = rows.manifest
    return {
        "config": to_dict(config),
        "config_digest": digest(config),
        "data": str(data),
        "corpus": {
            "tokenizer": manifest.tokenizer.fingerprint,
            "pad_id": manifest.tokenizer.pad_id,
            "source": manifest.source,
            "rows": manifest.rows["train"],
            # Equal shards are equal data, wherever they are stored.
            "shards": shards_digest(rows),
        },
        "plugins": [plugin.to_dict() for plugin in plugins_of(config)],
    }


def read_config(run_dir: Path, record: Record) -> PretrainConfig:
    """Return the configuration of a run; classes of plug-ins come from the copies that it keeps."""
    use_copies(record.get("plugins", ()), run_dir / PLUGINS)
    return from_dict(PretrainConfig, record["config"])


def shards_digest(rows: TokenRows) -> str:
    """Return a hash of all shards of a corpus."""
    return digest({shard.name: shard.sha256 for shard in rows.manifest.shards})


def vocabulary_of(info: TokenizerInfo | Tokenizer) -> Vocabulary:
    """Return what corruption needs of a tokenizer."""
    return Vocabulary(
        size=info.vocab_size,
        pad_id=info.pad_id,
        cls_id=info.cls_id,
        sep_id=info.sep_id,
        mask_id=info.mask_id,
        special_ids=tuple(info.special_ids),
    )


def build_objective(config: PretrainConfig, vocabulary: Vocabulary) -> PretrainObjective:
    """Return the objective with fresh weights, drawn from PyTorch's global generator."""
    build = OBJECTIVES[config.objective.objective]
    objective: PretrainObjective = build(config.objective, config.model, vocabulary)
    return objective


def budget_of(config: PretrainConfig) -> Budget:
    """Return the run's limits."""
    train, along = config.train, config.schedule.along
    return Budget(
        max_steps=train.max_steps if along == "steps" else math.inf,
        max_seconds=math.inf if train.max_hours is None else 3600 * train.max_hours,
        max_flops=math.inf if train.max_flops is None else train.max_flops,
        along=along,
    )


def learning_rate_of(config: PretrainConfig) -> Callable[[Progress], float]:
    """Return the learning rate of the step that follows a `Progress`."""
    budget, decay = budget_of(config), schedule_of(config.schedule)
    total = budget.total
    warmup = config.schedule.warmup_fraction * total
    if budget.along == "steps":
        warmup = int(warmup)

    def learning_rate(progress: Progress) -> float:
        factor = rate_factor(budget.done(progress), total=total, warmup=warmup, decay=decay)
        return config.optim.learning_rate * factor

    return learning_rate


def batches_of(
    config: PretrainConfig,
    corpus: Corpus,
    objective: PretrainObjective,
    *,
    num_rows: int,
    num_processes: int,
) -> BatchSource:
    """Return the source of global batches, cut into micro-batches of `num_rows` rows.

    A step of the second phase has as many tokens as one of the first, in fewer, longer rows.
    """
    schedule, train = config.schedule, config.train

    def size(fraction: float) -> int:
        if schedule.initial_batch_size is None:
            return train.global_batch_size
        return ramped_batch_size(
            fraction,
            first=schedule.initial_batch_size,
            last=train.global_batch_size,
            until=schedule.batch_ramp_fraction,
            multiple=train.rows_per_forward * num_processes,
        )

    def source(rows: TokenRows, num_rows: int, batch_size: Callable[[float], int]) -> BatchSource:
        return CorruptedRows(
            ShuffledRows(rows, seed=train.seed).take, objective.corrupt,
            batch_size=batch_size, micro_batch_size=num_rows, seed=train.seed,
        )  # fmt: skip

    first = source(corpus.rows, num_rows, size)
    if corpus.then is None:
        return first
    fewer = second_phase_rows(config, num_rows)
    multiple = fewer * num_processes
    then = source(
        corpus.then, fewer, lambda f: second_phase_rows(config, size(f), multiple=multiple)
    )
    return TwoPhases(first, then, begin_fraction=config.then.begin_fraction)


def second_phase_rows(config: PretrainConfig, num_rows: int, *, multiple: int = 1) -> int:
    """Return how many rows of the second phase have the tokens of `num_rows` of the first.

    Rounded down to a multiple of `multiple`, and at least that.
    """
    assert config.then.sequence_length is not None
    rows = num_rows * config.sequence_length // config.then.sequence_length
    return max(multiple, rows // multiple * multiple)
