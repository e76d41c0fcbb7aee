"""The data of a run: its rows, its batches, and what a configuration leaves to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from smallbench.config import digest
from smallbench.data.loader import ShuffledRows
from smallbench.data.shards import TokenRows
from smallbench.errors import ConfigError
from smallbench.objectives.base import PretrainObjective
from smallbench.train.batch_sources import BatchSource, CorruptedRows, TwoPhases
from smallbench.train.config import PretrainConfig
from smallbench.train.schedule import ramped_batch_size


@dataclass(frozen=True)
class RunData:
    """The rows that a run reads."""

    rows: TokenRows
    held_out: TokenRows
    then: TokenRows | None
    """The longer rows of the second phase."""


def open_data(data: Path, then_data: Path | None = None) -> RunData:
    """Open prepared directories."""
    then = None if then_data is None else TokenRows(then_data, "train")
    return RunData(TokenRows(data, "train"), TokenRows(data, "eval"), then)


def fit_to_data(config: PretrainConfig, corpus: RunData) -> PretrainConfig:
    """Return `config` with the values that the data decide.

    Raises `ConfigError` if the two contradict each other.
    """
    rows = corpus.rows
    if config.sequence_length != rows.sequence_length:
        raise ConfigError(
            f"--sequence_length={config.sequence_length}, but the corpus has rows of "
            f"{rows.sequence_length} tokens; set --sequence_length={rows.sequence_length}, or "
            f"prepare it again with --sequence_length={config.sequence_length}"
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


def _fit_second_phase(config: PretrainConfig, corpus: RunData) -> PretrainConfig:
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


def shards_digest(rows: TokenRows) -> str:
    """Return a hash of all shards of a corpus."""
    return digest({shard.name: shard.sha256 for shard in rows.manifest.shards})


def batches_of(
    config: PretrainConfig,
    corpus: RunData,
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
