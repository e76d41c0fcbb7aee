"""The speed that a plan takes from a measurement, if it is of this recipe on this card.

A run's `metrics.jsonl` has no names in it; `run.json` beside it says what was trained, and where.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smallbench.checkpoints.record import RECORD_NAME, read_record
from smallbench.config import differing_keys, to_dict
from smallbench.errors import ConfigError, DataError, SmallbenchError
from smallbench.gpus import Gpu, gpu_of_device
from smallbench.planning.planner import Decision
from smallbench.train.config import PretrainConfig

SPEED_KEYS = (
    "model.",
    "objective.",
    "sequence_length",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.compile",
    "train.half_residual",
    "train.deterministic",
    "train.engine",
    "train.offload",
    "train.checkpoint_activations",
)
"""Configuration keys, and prefixes of such, on which tokens/s depend."""


def measured_tokens_per_second(
    path: Path,
    config: PretrainConfig,
    gpu: Gpu,
    precision: str,
    *,
    decision: Decision,
    recipe: PretrainConfig,
) -> float:
    """Return the median tokens/s of a run's metrics.jsonl, or those of the benchmark's row.

    `recipe` is the recipe's own configuration, which `python -m benchmarks.gpu` measures; the row
    must be of the batch that is planned, compiled or not, and the plan without recomputation and
    offload. Raises `DataError` if the file has no measurement, `ConfigError` if it is of something
    else.
    """
    rates: list[float] = []
    rows: dict[tuple[int, bool], float] = {}
    try:
        for record in _records(path):
            if record.get("event") == "train":
                if not rates:
                    _require_same_run(path, config, gpu, precision)
                if record.get("tokens_per_second") is not None:
                    rates.append(float(record["tokens_per_second"]))
            if record.get("benchmark") == "gpu" and record["program"] == "ours":
                _require_same_device(path, record["device"], record["precision"], gpu, precision)
                _require_same_config(path, to_dict(recipe), config)
                if record["recipe"] == config.recipe:
                    row = int(record["batch_size"]), bool(record["compile"])
                    rows[row] = float(record["tokens_per_second"])
    except SmallbenchError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not a measurement ({error}); {EXPECTED}") from None
    if rows:
        rates.append(_matching_row(path, rows, config, decision))
    rate = statistics.median(rates) if rates else 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise DataError(f"{path} has no measurement of {config.recipe}; {EXPECTED}")
    return rate


def _matching_row(
    path: Path,
    rows: Mapping[tuple[int, bool], float],
    config: PretrainConfig,
    decision: Decision,
) -> float:
    """Return the tokens/s of the row that runs what the plan decided."""
    way = (decision.engine.offload, decision.checkpoint_activations)
    wanted = decision.num_rows, config.train.compile
    if way == ("none", False) and wanted in rows:
        return rows[wanted]
    names = {False: "eager", True: "compiled"}
    found = ", ".join(f"{size} rows {names[is_compiled]}" for size, is_compiled in sorted(rows))
    extra = " with recomputation" if way[1] else ""
    extra += "" if way[0] == "none" else " and offload"
    raise ConfigError(
        f"{path} has no measurement of {config.recipe} with {wanted[0]} rows {names[wanted[1]]}"
        f"{extra}; it has {found}. Leave --measured out for an estimate"
    )


EXPECTED = "expected a run's metrics.jsonl, or the output of 'python -m benchmarks.gpu'"


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the benchmark's table
            if isinstance(record, Mapping):
                yield record


def _require_same_run(path: Path, config: PretrainConfig, gpu: Gpu, precision: str) -> None:
    place = path.with_name(RECORD_NAME)
    if not place.is_file():
        raise DataError(
            f"{path} has no {RECORD_NAME} beside it, which says the recipe and the device; give "
            "the file in the run's own directory"
        )
    record = read_record(place)
    if not record["attempts"]:
        raise DataError(f"{place} has no attempt; the run never started")
    _require_same_config(path, record["config"], config)
    for attempt in record["attempts"]:
        device, of_run = str(attempt.get("device")), attempt.get("precision")
        _require_same_device(path, device, of_run, gpu, precision)
        if (count := attempt.get("num_devices", 1)) != 1:
            raise ConfigError(f"{path} was measured on {count} devices; a plan is for one")


def _require_same_config(path: Path, settings: Mapping[str, Any], config: PretrainConfig) -> None:
    if settings.get("recipe") != config.recipe:
        raise ConfigError(
            f"{path} was measured with recipe {settings.get('recipe')}, not with {config.recipe}"
        )
    for key, (old, new) in differing_keys(settings, to_dict(config)).items():
        # The run's vocabulary is its tokenizer's; a plan has it only if it was given.
        if key.startswith(SPEED_KEYS):
            raise ConfigError(
                f"{path} was measured with {key}={old}, but this plan has {new}; set --{key}={old}"
            )


def _require_same_device(
    path: Path, device: str, measured: str | None, gpu: Gpu, precision: str
) -> None:
    if gpu_of_device(device) != gpu:
        raise ConfigError(
            f"{path} was measured on {device}, not on {gpu.name}; set --gpu to that card, or leave "
            "--measured out"
        )
    if measured not in (None, precision):
        raise ConfigError(f"{path} was measured in {measured}, but this plan is for {precision}")
