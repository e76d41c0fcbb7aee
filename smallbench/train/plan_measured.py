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

from smallbench.checkpoints.record import RECORD_NAME
from smallbench.config import differing_keys, to_dict
from smallbench.errors import ConfigError, DataError, SmallbenchError
from smallbench.gpus import Gpu, gpu_of_device
from smallbench.train.config import PretrainConfig

SPEED_KEYS = (
    "model.",
    "objective.",
    "sequence_length",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.compile",
    "train.engine",
    "train.offload",
    "train.checkpoint_activations",
)
"""Configuration keys, and prefixes of such, on which tokens/s depend."""


def measured_tokens_per_second(
    path: Path, config: PretrainConfig, gpu: Gpu, precision: str, *, recipe: PretrainConfig
) -> float:
    """Return the median tokens/s of a run's metrics.jsonl, or the best of the benchmark's rows.

    `recipe` is the recipe's own configuration, which `python -m benchmarks.gpu` measures. Raises
    `DataError` if the file has no measurement, `ConfigError` if it is of something else.
    """
    rates: list[float] = []
    try:
        for record in _records(path):
            if record.get("event") == "train":
                if not rates:
                    _require_same_run(path, config, gpu, precision)
                if record.get("tokens_per_second") is not None:
                    rates.append(float(record["tokens_per_second"]))
            if record.get("benchmark") == "gpu":
                _require_same_device(
                    path, record["device"], record.get("precision"), gpu, precision
                )
                _require_same_config(path, to_dict(recipe), config)
                system = config.recipe.removesuffix("-small")
                rows = {n: r for n, r in record["results"].items() if n.startswith(f"{system}/our")}
                rates += [max(float(r["tokens_per_second"]) for r in rows.values())] if rows else []
    except SmallbenchError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not a measurement ({error}); {_EXPECTED}") from None
    rate = statistics.median(rates) if rates else 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise DataError(f"{path} has no measurement of {config.recipe}; {_EXPECTED}")
    return rate


_EXPECTED = "expected a run's metrics.jsonl, or the output of 'python -m benchmarks.gpu'"


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
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
        attempts = [
            (a["device"], a["precision"], a.get("num_devices", 1)) for a in record["attempts"]
        ]
        settings = dict(record["config"])
    except FileNotFoundError:
        raise DataError(
            f"{path} has no {RECORD_NAME} beside it, which says the recipe and the device; give "
            "the file in the run's own directory"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{place} is not the record of a run ({error})") from None
    if not attempts:
        raise DataError(f"{place} has no attempt; the run never started")
    _require_same_config(path, settings, config)
    for device, of_run, num_devices in attempts:
        _require_same_device(path, device, of_run, gpu, precision)
        if num_devices != 1:
            raise ConfigError(f"{path} was measured on {num_devices} devices; a plan is for one")


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
        raise ConfigError(f"{path} was measured on {device}, not on {gpu.name}")
    if measured not in (None, precision):
        raise ConfigError(f"{path} was measured in {measured}, but this plan is for {precision}")
