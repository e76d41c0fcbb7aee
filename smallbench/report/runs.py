"""A run as a report sees it: its records as series, its attempts, and its final numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smallbench.checkpoints.record import RECORD_NAME, parse_record
from smallbench.config import flatten
from smallbench.errors import DataError
from smallbench.storage import open_storage
from smallbench.storage.base import NotFoundError
from smallbench.storage.config import StorageConfig
from smallbench.tracking.jsonl import parse_metrics

Records = Sequence[Mapping[str, Any]]

AXES = {
    "step": "steps",
    "tokens": "tokens",
    "hours": "hours of training",
    "flops": "training FLOPs",
}
SCORE = "glue/score"


@dataclass(frozen=True)
class Series:
    """One line of a chart: `y` at `x`, None if nothing finite was measured."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]


@dataclass(frozen=True)
class RecordedRun:
    """`run.json` and `metrics.jsonl` of one run."""

    name: str
    record: Mapping[str, Any]
    records: Records
    scores: Mapping[int, float] = field(default_factory=dict)
    """Of GLUE, by the step of the checkpoint that was fine-tuned."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted keys of the configuration, and the corpus."""
        return {**flatten(self.record["config"]), "data": self.record["data"]}

    @cached_property
    def by_event(self) -> dict[str, Records]:
        """Records of training, of evaluation and of fine-tuning on GLUE."""
        found = {e: [r for r in self.records if r["event"] == e] for e in ("train", "eval")}
        scores = [
            {key: self._at(step, key) for key in ("tokens", "train_seconds")}
            | {"step": step, "score": score}
            for step, score in sorted(self.scores.items())
        ]
        return {**found, "glue": scores}

    def _at(self, step: int, key: str) -> float:
        """Interpolate the training records at a step."""
        rows = [r for r in self.records if r["event"] == "train" and r.get(key) is not None]
        if not rows:
            return 0.0
        steps, values = zip((0, 0.0), *((row["step"], row[key]) for row in rows), strict=True)
        return float(np.interp(step, steps, values))

    def position(self, record: Mapping[str, Any], axis: str) -> float:
        """Return where a record lies on an axis."""
        if axis == "hours":
            return float(record["train_seconds"] / 3600)
        if axis == "flops":  # only training records have them
            return float(record.get("train_flops") or self._at(record["step"], "train_flops"))
        return float(record[axis])

    def series(self, key: str, axis: str) -> Series:
        """`train/loss` and the like against a key of `AXES`; empty if it was not logged."""
        event, _, name = key.partition("/")
        rows = [record for record in self.by_event[event] if name in record]
        return Series(
            tuple(self.position(record, axis) for record in rows),
            tuple(_finite(record[name]) for record in rows),
        )

    def restarts(self, axis: str) -> list[float]:
        """Return where later attempts went on from."""
        places = []
        for attempt in self.record["attempts"][1:]:
            # A finished run that was started again repeated nothing.
            behind = [r for r in self.records if r["step"] >= attempt.get("first_step", math.inf)]
            if behind and behind[0]["step"] < self.records[-1]["step"]:
                places.append(self.position(behind[0], axis))
        return places

    def totals(self) -> dict[str, Any]:
        """Final numbers: `run.json`'s summary where it has them, else from the last records."""
        train, held_out = self.by_event["train"], self.by_event["eval"]
        last: dict[str, Any] = {
            **(held_out[-1] if held_out else {}),
            **(train[-1] if train else {}),
        }
        last |= self.record.get("summary") or {}
        if "gpu_active_seconds" in last:
            active = last["gpu_active_seconds"]
            last["gpu_active_hours"] = None if active is None else active / 3600
        losses = [r["loss"] for r in held_out if r["loss"] is not None]
        rates = [r["mfu"] for r in train if r.get("mfu") is not None]
        seconds = last.get("train_seconds")
        return {
            **last,
            "held_out_loss": held_out[-1]["loss"] if held_out else None,
            "best_held_out_loss": min(losses, default=None),
            "hours": seconds / 3600 if seconds else None,
            "overall_tokens_per_second": last["tokens"] / seconds if seconds else None,
            "median_mfu": median(rates) if rates else None,
            "attempts": len(self.record["attempts"]),
        }


def read_recorded_run(url: str, config: StorageConfig | None = None) -> RecordedRun:
    """Return the run in a directory or a storage; raises `DataError` if there is none."""
    storage = open_storage(url, config)
    try:
        record = parse_record(storage.get(RECORD_NAME), f"{url}/{RECORD_NAME}")
        records = parse_metrics(storage.get("metrics.jsonl").decode(), f"{url}/metrics.jsonl")
    except NotFoundError:
        raise DataError(
            f"{url} is not a run (expected run.json and metrics.jsonl); give the "
            "--run_dir of a pretraining, or STORAGE/NAME of one"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{url}/metrics.jsonl is not UTF-8 text ({error})") from None
    if not records:
        raise DataError(f"the run in {url} has logged nothing yet")
    for one in records:
        if not isinstance(one.get("event"), str) or not all(
            isinstance(one.get(key), int | float) for key in ("tokens", "train_seconds")
        ):
            raise DataError(
                f"{url}/metrics.jsonl: the record of step {one['step']} has no 'event', or no "
                "number in 'tokens' or 'train_seconds'"
            )
    if not all(
        isinstance(attempt.get("started_unix_seconds"), int | float)
        and {"device", "precision", "git_commit", "smallbench"} <= attempt.keys()
        for attempt in record["attempts"]
    ):
        raise DataError(f"{url}/{RECORD_NAME}: an attempt lacks its time, device or version")
    return RecordedRun(Path(storage.url).name, record, records)


def read_recorded_runs(
    urls: Sequence[str], config: StorageConfig | None = None
) -> list[RecordedRun]:
    """Several, with names that tell them apart."""
    runs = [read_recorded_run(url, config) for url in urls]
    names = [run.name for run in runs]
    return [
        replace(run, name=url.rstrip("/")) if names.count(run.name) > 1 else run
        for url, run in zip(urls, runs, strict=True)
    ]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
