"""An entry from a pretraining run and a GLUE run: whatever the two know is taken from them.

Read here are `run.json` and `metrics.jsonl` of the one, and the stored runs of the other. What no
run can know (who, under which licence, at what price) comes in as `Author`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from smallbench.checkpoints.record import RECORD_NAME, read_record
from smallbench.config import differing_keys, flatten, to_dict
from smallbench.errors import DataError
from smallbench.glue.choice import CHOICE
from smallbench.glue.official import order_difference
from smallbench.glue.protocols import PROTOCOLS, chosen_rate, departures, summarize
from smallbench.glue.results import (
    RunResult,
    RunSettings,
    group_runs,
    read_predictions,
    read_runs,
    run_directory,
)
from smallbench.glue.tasks import TASKS
from smallbench.gpus import gpu_of_device
from smallbench.leaderboard.compute import count_parameters, encoder_config
from smallbench.leaderboard.entry import (
    FLOPS_KEY,
    PEAK_KEY,
    PLUGINS_FOLDER,
    SCHEMA_VERSION,
    SIZE_NAMES,
    Data,
    Energy,
    Entry,
    Finetune,
    Hardware,
    Links,
    Model,
    Pretrain,
    Provenance,
    Reported,
    Stage,
    StoredRun,
    chained,
    predictions_bytes,
    predictions_path,
    write_entry,
)
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.scores import PAPER
from smallbench.tracking.jsonl import read_metrics

MAX_LOG_POINTS = 4_000
"""More records of a run are merged, so that a million steps stay under a megabyte."""
MAX_STAGES = 100

SHARED_SETTINGS = (
    "batch_size",
    "max_length",
    "weight_decay",
    "warmup_fraction",
    "clip_norm",
    "precision",
    "model_sha256",
    "pooling",
)
"""Settings that all fine-tunings of an entry have in common."""


@dataclass(frozen=True)
class Author:
    """What the runs do not know."""

    name: str | None
    """Of the entry; None: the recipe's."""
    authors: tuple[str, ...]
    license: str
    date: str
    contains_glue: bool
    contact: str | None = None
    links: Links = field(default_factory=Links)
    notes: tuple[str, ...] = ()
    image_digest: str | None = None
    usd_per_hour: float | None = None
    gco2_per_kwh: float | None = None


def write_new_entry(out: Path, *, run_dir: Path, glue: Path, author: Author) -> Entry:
    """Write a complete entry to the new folder `out`, whose name is its slug.

    Raises `DataError` where a run is not finished, the two do not belong together, or the result is
    not what the schema demands.
    """
    if out.exists():
        raise DataError(f"{out} is there already; delete it or choose another --out")
    record = _read_record(run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    records = [m for m in metrics if m["event"] == "train"]
    if not records:
        raise DataError(f"{run_dir} has no records of training steps; let it train first")
    runs = [run for run in read_runs(glue) if run.settings.task in TASKS]
    _require_same_model(runs, record, last_step=records[-1]["step"], glue=glue)
    log = chained(_log_records(metrics), config_digest=record["config_digest"])
    stored, predictions = _predictions(runs, glue)
    entry = Entry(
        schema_version=SCHEMA_VERSION,
        slug=out.resolve().name,
        name=author.name or record["config"]["recipe"],
        date=author.date,
        authors=author.authors,
        contact=author.contact,
        license=author.license,
        links=author.links,
        tier="logged",
        notes=author.notes,
        model=_model(record["config"], runs[0].settings.num_parameters),
        data=_data(record, records[-1]["tokens"], contains_glue=author.contains_glue),
        pretrain=_pretrain(record, metrics, records),
        hardware=_hardware(record, usd_per_hour=author.usd_per_hour),
        energy=_energy(record, gco2_per_kwh=author.gco2_per_kwh),
        finetune=_finetune(runs),
        provenance=_provenance(
            record, log_sha256=log[-1]["sha256"], image_digest=author.image_digest
        ),
    )
    for plugin in record.get("plugins", ()):
        predictions |= {_plugin_path(n): text.encode() for n, text in plugin["files"].items()}
    write_entry(out, entry, runs=stored, predictions=predictions, train_log=log)
    try:
        read_submission(out)
    except Rejected as error:
        raise DataError(f"{out} is written, but would be rejected: {error.reason}") from None
    return entry


def write_random_entry(
    out: Path, *, run_dir: Path, runs: Sequence[RunResult], protocol: str, author: Author
) -> Entry:
    """Write the reference of random weights of a run's shape to the new folder `out`.

    Its scores are reported: the board shows them without a rank. Raises `DataError` if `runs` are
    not all runs of `protocol`.
    """
    record, summary = _read_record(run_dir), summarize(runs, protocol)
    own = ("random_init", "is_sample")
    missing = [reason for reason in summary.departures if not reason.startswith(own)]
    if summary.average is None or missing or not summary.random_init:
        raise DataError(f"not the runs of {protocol} on random weights: {missing or 'incomplete'}")
    recipe = record["config"]["recipe"]
    entry = Entry(
        schema_version=SCHEMA_VERSION,
        slug=out.resolve().name,
        name=author.name or f"{recipe}, random weights",
        date=author.date,
        authors=author.authors,
        contact=author.contact,
        license=author.license,
        links=author.links,
        tier="reported",
        notes=("A reference, not ranked: what pretraining must beat.", *author.notes),
        model=_model(record["config"], summary.num_parameters),
        reported=Reported(
            f"random weights of {recipe}, fine-tuned by protocol {protocol}",
            {name: round(task.score, 4) for name, task in summary.tasks.items()},
            round(summary.average, 4),
            protocol,
        ),
    )
    write_entry(out, entry)
    try:
        read_submission(out)
    except Rejected as error:
        raise DataError(f"{out} is written, but would be rejected: {error.reason}") from None
    return entry


# ---- the pretraining run


def _read_record(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir / RECORD_NAME)
    try:
        finished = record["config"]["recipe"], record["attempts"][-1]["precision"]
    except (KeyError, IndexError, TypeError):
        finished = None
    if finished is None:
        raise DataError(f"{run_dir}/run.json is no record of a pretraining; give its --run_dir")
    return record


def _require_same_model(
    runs: Sequence[RunResult], record: Mapping[str, Any], *, last_step: int, glue: Path
) -> None:
    """An export is named by its run and step (`glue.encoder.display_name`)."""
    if len(group_runs(runs)) != 1:
        models = ", ".join(group[0].settings.model for group in group_runs(runs))
        raise DataError(f"{glue} has runs of several models: {models}; an entry is one")
    measured = runs[0].settings
    expected = f"(run {record['run_id']}, step {last_step:,})"
    if not measured.model.endswith(expected):
        raise DataError(
            f"{glue} measured {measured.model!r}, not the last step of this run {expected}; "
            "export the run, then fine-tune the export"
        )
    if measured.random_init or measured.max_train_examples is not None:
        raise DataError(
            f"{glue} was fine-tuned from random weights or on a part of train; an entry is of the "
            "pretrained encoder on all of it"
        )
    _require_official_rows(runs, glue)


def _require_official_rows(runs: Sequence[RunResult], glue: Path) -> None:
    """Raise `DataError` for runs on other rows; samples are marked by their gold labels."""
    for run in runs:
        if run.unofficial:
            raise DataError(f"{glue} is not of the official rows: {run.unofficial[0]}")
        if run.settings.split == CHOICE or run.settings.is_sample:
            continue
        task = TASKS[run.settings.task]
        for split in task.dev_splits:
            found = run.data_sha256.get(split, "")
            if reason := order_difference(task, task.split(split), found):
                raise DataError(f"{glue}: {reason}; an entry's predictions go by position")


def _model(settings: Mapping[str, Any], num_parameters: int) -> Model:
    model = settings["model"]
    found = Model(
        architecture=model["architecture"],
        objective=settings["objective"]["objective"],
        num_parameters=num_parameters,
        num_parameters_without_embeddings=None,
        from_scratch=True,  # a pretraining here begins from the seed, and has no teacher
        distilled_from=None,
        **{name: model.get(name) for name in SIZE_NAMES},
    )
    encoder = encoder_config(found, model)
    if encoder is None:
        return found
    inner = count_parameters(encoder).without_embeddings
    return Model(**{**vars(found), "num_parameters_without_embeddings": inner})


def _data(record: Mapping[str, Any], num_tokens: int, *, contains_glue: bool) -> Data:
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


def _pretrain(
    record: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
) -> Pretrain:
    settings, summary = record["config"], record.get("summary", {})
    last, batch = records[-1], settings["train"]["global_batch_size"]
    active = summary.get("gpu_active_seconds") or last["train_seconds"]
    evaluating = sum(m.get("eval_seconds", 0.0) for m in metrics)
    ramps: tuple[Stage, ...] = ()
    if flatten(settings).get("schedule.initial_batch_size") is not None:
        ramps = _stages(records, length=settings["sequence_length"])
    return Pretrain(
        num_steps=last["step"],
        global_batch_size=batch,
        sequence_length=settings["sequence_length"],
        ramps=ramps,
        num_tokens=last["tokens"],
        wall_seconds=summary.get("wall_seconds") or last["train_seconds"] + evaluating,
        gpu_active_seconds=active,
        precision=record["attempts"][-1]["precision"],
        seed=settings["train"]["seed"],
    )


def _stages(records: Sequence[Mapping[str, Any]], *, length: int) -> tuple[Stage, ...]:
    """The batch sizes that a run had, from the tokens between its records."""
    start = {"step": 0, "tokens": 0, "train_seconds": 0.0}
    parts = []
    for a, b in pairwise(_thinned([start, *records], MAX_STAGES)):
        steps = b["step"] - a["step"]
        parts.append((round((b["tokens"] - a["tokens"]) / steps / length), steps))
    return tuple(
        Stage(sum(steps for _, steps in group), batch, length)
        for batch, group in groupby(parts, key=lambda part: part[0])
    )


def _hardware(record: Mapping[str, Any], *, usd_per_hour: float | None) -> Hardware:
    attempts = record["attempts"]
    last, gpu = attempts[-1], gpu_of_device(attempts[-1]["device"])
    return Hardware(
        gpu=last["device"],
        count=max(attempt.get("num_devices", 1) for attempt in attempts),
        memory_bytes=last.get("memory_bytes"),
        peak_tflops=gpu.peak_tflops.get(last["precision"]) if gpu else None,
        driver=last.get("driver"),
        torch=last["torch"],
        usd_per_hour=usd_per_hour,
    )


def _energy(record: Mapping[str, Any], *, gco2_per_kwh: float | None) -> Energy:
    summary = record.get("summary", {})
    # NVML reads 0 before Volta and on vGPU: that is not known, not nothing.
    kwh = summary.get("energy_kwh") or None
    method = _energy_method(summary.get("energy_method") or "") if kwh else None
    return Energy(kwh, method, gco2_per_kwh)


def _energy_method(methods: str) -> str | None:
    """An entry's word for how a run's attempts were counted; of several the least exact."""
    words = {"tdp": "estimate", "codecarbon": "codecarbon", "nvml": "nvml"}
    return next((word for name, word in words.items() if name in methods.split(" + ")), None)


def _provenance(
    record: Mapping[str, Any], *, log_sha256: str, image_digest: str | None
) -> Provenance:
    commits = [attempt["git_commit"] for attempt in record["attempts"]]
    last = record["attempts"][-1]
    commit = (last["git_commit"] or "").removesuffix("+dirty")
    _, *arguments = last["command"]
    return Provenance(
        code_version=last["smallbench"],
        git_commit=commit or None,
        dirty=any((found or "").endswith("+dirty") for found in commits),
        image_digest=image_digest or last.get("image_digest"),
        # Where things lay on that machine is nobody's business.
        command=("smallbench", *(_without_place(argument) for argument in arguments)),
        config_digest=record["config_digest"],
        config=record["config"],
        train_log_sha256=log_sha256,
        plugins=tuple(
            {**plugin, "files": {name: _plugin_path(name) for name in plugin["files"]}}
            for plugin in record.get("plugins", ())
        ),
    )


def _plugin_path(name: str) -> str:
    """Where an entry keeps a plug-in's file: `lab/gate.py` in `plugins/lab.gate.py`."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name.replace("/", "."))
    return f"{PLUGINS_FOLDER}/{plain}"


def _without_place(text: str) -> str:
    """`--data=/home/me/owt` as `--data=owt`; hub names and URLs stay."""
    flag, separator, value = text.rpartition("=")
    if value.startswith(("/", "~", ".")):
        value = Path(value).name
    return f"{flag}{separator}{value}"


def _log_records(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The training log: the held-out loss of step 0, then the training records."""
    first = [m for m in metrics if m["event"] == "eval" and m["step"] == 0][:1]
    records = [m for m in metrics if m["event"] == "train"]
    found = []
    for kept in _thinned([*first, *records], MAX_LOG_POINTS):
        found.append(
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
        )
    return found


def _thinned(records: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first, the last, and every so-manieth between; the throughput is that of the whole way.

    Averaged over time from the logged rates, so it still says what was measured.
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


# ---- the GLUE run


def _finetune(runs: Sequence[RunResult]) -> Finetune:
    first = to_dict(runs[0].settings)
    for run in runs:
        different = differing_keys(first, to_dict(run.settings))
        for key in SHARED_SETTINGS:
            if key in different:
                raise DataError(
                    f"the GLUE runs mix {key} {different[key][0]!r} and {different[key][1]!r}; an "
                    "entry has one setting for all tasks"
                )
    chosen, rows = {}, {}
    for name in TASKS:
        choice = [run for run in _of(runs, name) if run.settings.split == CHOICE]
        if choice:
            chosen[name] = chosen_rate(choice)
            rows[name] = choice[0].data_sha256.get(CHOICE, "")
    counted = [
        run.settings
        for run in runs
        if run.settings.split == CHOICE
        or run.settings.learning_rate == chosen.get(run.settings.task)
    ]
    return Finetune(
        protocol=_protocol(counted, chosen),
        learning_rates=tuple(sorted({run.settings.learning_rate for run in runs})),
        chosen=chosen,
        choice_sha256={name: sha256 for name, sha256 in rows.items() if sha256},
        num_trials=max(len(_dev(runs, name)) for name in TASKS),
        **{key: first[key] for key in SHARED_SETTINGS},
    )


def _protocol(counted: Sequence[RunSettings], chosen: Mapping[str, float]) -> str:
    """Return the ranked protocol that the runs follow, or `paper`."""
    for protocol in PROTOCOLS.values():
        # Samples are scored by the same protocol; the gold labels tell them apart.
        other = [r for r in departures(protocol, counted) if not r.startswith("is_sample")]
        if protocol.chooses_rate and chosen.keys() <= {*protocol.tasks} and chosen and not other:
            return protocol.name
    return PAPER


def _predictions(runs: Sequence[RunResult], glue: Path) -> tuple[list[StoredRun], dict[str, bytes]]:
    """Return a line for each run on dev or on the choice's part of train, and its files."""
    stored, content = [], {}
    for name, task in TASKS.items():
        for run in _of(runs, name):
            s = run.settings
            trial: dict[str, Any] = {
                "learning_rate": s.learning_rate,
                "seed": s.seed,
                "epochs": s.epochs,
            }
            paths = {}
            for split in s.scored_splits:
                path = predictions_path(name, split=split, **trial)
                values = read_predictions(run_directory(glue, s), task, split)
                content[path] = predictions_bytes(task, values)
                paths[split] = path
            stored.append(StoredRun(task=name, predictions=paths, **trial))
    if not any("dev" in run.predictions for run in stored):
        raise DataError(f"{glue} has no run that was scored on dev yet")
    return stored, content


def _of(runs: Sequence[RunResult], task: str) -> list[RunResult]:
    return [run for run in runs if run.settings.task == task]


def _dev(runs: Sequence[RunResult], task: str) -> list[RunResult]:
    return [run for run in _of(runs, task) if run.settings.split != CHOICE]
