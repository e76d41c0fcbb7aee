"""Make the sections of an entry that describe the pretraining from `run.json` and its records."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from smallbench.config import flatten
from smallbench.gpus import gpu_of_device
from smallbench.leaderboard.compute import count_parameters, encoder_config
from smallbench.leaderboard.entry import (
    FLOPS_KEY,
    PEAK_KEY,
    PLUGINS_FOLDER,
    SIZE_NAMES,
    Data,
    Energy,
    Hardware,
    Model,
    Pretrain,
    Provenance,
    Stage,
)

MAX_LOG_POINTS = 4_000
"""Limit of records; those of longer runs are merged, so that a million steps stay under 1 MB."""
MAX_STAGES = 100


def model_of(settings: Mapping[str, Any], num_parameters: int) -> Model:
    """Return the trained model; sizes are of the encoder without a head."""
    model = settings["model"]
    found = Model(
        architecture=model["architecture"],
        objective=settings["objective"]["objective"],
        num_parameters=num_parameters,
        num_parameters_without_embeddings=None,
        from_scratch=settings["train"].get("init_from") is None,
        distilled_from=None,
        **{name: model.get(name) for name in SIZE_NAMES},
    )
    encoder = encoder_config(found, model)
    if encoder is None:
        return found
    inner = count_parameters(encoder).without_embeddings
    return Model(**{**vars(found), "num_parameters_without_embeddings": inner})


def data_of(record: Mapping[str, Any], num_tokens: int, *, contains_glue: bool) -> Data:
    """Return the corpus of the run."""
    corpus = record["corpus"]
    unique = corpus["rows"] * record["config"]["sequence_length"]
    return Data(
        name=_without_place(corpus["source"]),
        revision=None,
        sha256=corpus["shards"],
        unique_tokens=unique,
        epochs=num_tokens / unique,
        contains_glue=contains_glue,
    )


def pretrain_of(
    record: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
) -> Pretrain:
    """Return steps, batch, length, tokens and time."""
    settings, summary = record["config"], record.get("summary", {})
    last, batch = records[-1], settings["train"]["global_batch_size"]
    active = summary.get("gpu_active_seconds") or last["train_seconds"]
    evaluating = sum(m.get("eval_seconds", 0.0) for m in metrics)
    return Pretrain(
        num_steps=last["step"],
        global_batch_size=batch,
        sequence_length=settings["sequence_length"],
        ramps=stages_of(settings, records),
        num_tokens=last["tokens"],
        wall_seconds=summary.get("wall_seconds") or last["train_seconds"] + evaluating,
        gpu_active_seconds=active,
        precision=largest_device(record)["precision"],
        seed=settings["train"]["seed"],
    )


def stages_of(
    settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> tuple[Stage, ...]:
    """Return the batch sizes and lengths of a run that has several, else nothing."""
    flat, length = flatten(settings), settings["sequence_length"]
    batch, last = settings["train"]["global_batch_size"], records[-1]
    is_ramp = flat.get("schedule.initial_batch_size") is not None
    longer = flat.get("then.sequence_length")
    if longer is None:
        return batch_stages_of(records, length=length) if is_ramp else ()
    keys = {"flops": FLOPS_KEY, "hours": "train_seconds"}
    key = keys.get(str(flat.get("schedule.along")), "step")
    begin = flat["then.begin_fraction"] * last[key]
    step = next(record["step"] for record in records if record[key] >= begin)
    if key == "step":  # known more precisely
        step = math.ceil(begin)
    ramp = batch_stages_of([r for r in records if r["step"] <= step], length=length)
    first = ramp if is_ramp else (Stage(step, batch, length),)
    rest = last["step"] - sum(stage.num_steps for stage in first)
    return (*first, Stage(rest, max(1, batch * length // longer), longer))


def batch_stages_of(records: Sequence[Mapping[str, Any]], *, length: int) -> tuple[Stage, ...]:
    """Return the batch sizes of a run, from the tokens between its records."""
    start = {"step": 0, "tokens": 0, "train_seconds": 0.0}
    parts = []
    for a, b in pairwise(thin_records([start, *records], MAX_STAGES)):
        steps = b["step"] - a["step"]
        parts.append((round((b["tokens"] - a["tokens"]) / steps / length), steps))
    return tuple(
        Stage(sum(steps for _, steps in group), batch, length)
        for batch, group in groupby(parts, key=lambda part: part[0])
    )


def hardware_of(record: Mapping[str, Any], *, usd_per_hour: float | None) -> Hardware:
    """Return the one device; of a run on several, one after the other, the largest."""
    attempts, last = record["attempts"], largest_device(record)
    gpu = gpu_of_device(last["device"])
    return Hardware(
        gpu=last["device"],
        count=max(attempt.get("num_devices", 1) for attempt in attempts),
        memory_bytes=last.get("memory_bytes"),
        peak_tflops=gpu.peak_tflops.get(last["precision"]) if gpu else None,
        driver=last.get("driver"),
        torch=last["torch"],
        usd_per_hour=usd_per_hour,
    )


def largest_device(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the newest of the attempts on the device with the most memory."""

    def memory(attempt: Mapping[str, Any]) -> int:
        gpu = gpu_of_device(attempt["device"])
        return max(attempt.get("memory_bytes") or 0, gpu.memory_bytes if gpu else 0)

    largest: Mapping[str, Any] = max(reversed(record["attempts"]), key=memory)
    return largest


def energy_of(record: Mapping[str, Any], *, gco2_per_kwh: float | None) -> Energy:
    """Return the energy; unknown is None."""
    summary = record.get("summary", {})
    # NVML reads 0 before Volta and on vGPU: that means unknown.
    kwh = summary.get("energy_kwh") or None
    used = (summary.get("energy_method") or "").split(" + ") if kwh else []
    words = {"tdp": "estimate", "codecarbon": "codecarbon", "nvml": "nvml"}
    method = next((word for name, word in words.items() if name in used), None)
    return Energy(kwh, method, gco2_per_kwh)


def provenance_of(
    record: Mapping[str, Any], *, log_sha256: str, image_digest: str | None
) -> Provenance:
    """Return the code and its configuration."""
    commits = [attempt["git_commit"] for attempt in record["attempts"]]
    own = {(found or "").removesuffix("+dirty") for found in commits}
    last = record["attempts"][-1]
    commit = (last["git_commit"] or "").removesuffix("+dirty")
    _, *arguments = last["command"]
    return Provenance(
        code_version=last["smallbench"],
        git_commit=commit if len(own) == 1 and commit else None,  # one commit made all of it
        dirty=any((found or "").endswith("+dirty") for found in commits),
        image_digest=image_digest or last.get("image_digest"),
        # Paths of the machine stay private.
        command=("smallbench", *(_without_place(argument) for argument in arguments)),
        config_digest=record["config_digest"],
        config=record["config"],
        train_log_sha256=log_sha256,
        plugins=tuple(
            {**plugin, "files": {name: plugin_path(name) for name in plugin["files"]}}
            for plugin in record["plugins"]
        ),
    )


def plugin_path(name: str) -> str:
    """Return the path of a plug-in's file in an entry: `plugins/lab.gate.py` for `lab/gate.py`.

    What pytest would execute has another name: `plugins/_test_gate_.py` for `test_gate.py`.
    """
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name.replace("/", "."))
    if plain != name.replace("/", "."):  # other letters; else two names could become one
        plain = f"{hashlib.sha256(name.encode()).hexdigest()[:8]}_{plain}"
    plain = re.sub(r"(conftest|test_.*|.*_test)\.py", r"_\1_.py", plain)
    return f"{PLUGINS_FOLDER}/{plain}"


def _without_place(text: str) -> str:
    """Return `--data=/home/me/owt` as `--data=owt`; hub names and URLs stay."""
    flag, separator, value = text.rpartition("=")
    if value.startswith(("/", "~", ".")):
        value = Path(value).name
    return f"{flag}{separator}{value}"


def log_records(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the training log: the held-out loss of step 0, then the training records."""
    first = [m for m in metrics if m["event"] == "eval" and m["step"] == 0][:1]
    records = [m for m in metrics if m["event"] == "train"]
    return [
        {
            "step": kept["step"],
            "tokens": kept["tokens"],
            "seconds": kept["train_seconds"],
            "loss": kept["loss"],
            # ELECTRA's generator is the masked-language model of the pair.
            "mlm_loss": kept.get("mlm_loss", kept.get("generator_loss")),
            "tokens_per_second": kept.get("tokens_per_second"),
            **{key: kept[key] for key in (PEAK_KEY, FLOPS_KEY) if kept.get(key)},
        }
        for kept in thin_records([*first, *records], MAX_LOG_POINTS)
    ]


def thin_records(records: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Keep the first, the last and every n-th record between them.

    A record's throughput is the mean over the time since the previous kept one.
    """
    every = -(-len(records) // most)
    kept: list[Mapping[str, Any]] = []
    tokens, seconds = 0.0, 0.0
    for number, record in enumerate(records):
        rate = record.get("tokens_per_second")
        if rate is not None and number:
            elapsed = record["train_seconds"] - records[number - 1]["train_seconds"]
            tokens, seconds = tokens + rate * elapsed, seconds + elapsed
        if number % every == 0 or number == len(records) - 1:
            if seconds > 0:
                record = {**record, "tokens_per_second": tokens / seconds}
            kept.append(record)
            tokens, seconds = 0.0, 0.0
    return kept
