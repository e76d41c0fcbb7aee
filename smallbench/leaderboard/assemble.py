"""Make an entry from a pretraining run and a GLUE run.

Inputs are `run.json` and `metrics.jsonl` of the first, and the stored runs of the second. `Author`
adds what no run records: who, under which licence, at what price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from smallbench.checkpoints.record import RECORD_NAME, read_record
from smallbench.config import differing_keys, to_dict
from smallbench.errors import DataError
from smallbench.glue.choice import CHOICE
from smallbench.glue.official import order_difference
from smallbench.glue.protocols import PROTOCOLS, SAMPLE_ROWS, chosen_rate, departures
from smallbench.glue.results import (
    RunResult,
    RunSettings,
    group_runs,
    read_predictions,
    read_runs,
    run_directory,
)
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import (
    SCHEMA_VERSION,
    Entry,
    Finetune,
    Links,
    StoredRun,
    chained,
    predictions_bytes,
    predictions_path,
    write_entry,
)
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.run_sections import (
    data_of,
    energy_of,
    hardware_of,
    log_records,
    model_of,
    plugin_path,
    pretrain_of,
    provenance_of,
)
from smallbench.leaderboard.scores import PAPER
from smallbench.tracking.jsonl import read_metrics

SHARED_SETTINGS = [f.name for f in fields(Finetune) if f.name in RunSettings.__dataclass_fields__]
"""Settings that all fine-tunings of an entry have in common: those that each stored run has."""


@dataclass(frozen=True)
class Author:
    """Data that no run records."""

    name: str | None
    """Of the entry; None: the recipe's, and the seed of the pretraining unless it is 1."""
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


_LINK = "an https:// link of at most 300 characters"
EXPECTED = {
    "name": "1 to 200 visible characters",
    "authors": "1 to 100 names of 1 to 200 visible characters",
    "license": "an SPDX identifier, such as Apache-2.0",
    "contact": "1 to 200 visible characters",
    "notes": "at most 20 remarks of 1 to 1,000 visible characters",
    "links.code": _LINK,
    "links.paper": _LINK,
    "links.wandb": _LINK,
    "links.huggingface": "https://huggingface.co/ORG/MODEL, without a revision",
    "links.huggingface_revision": "40 hexadecimal digits in lower case",
    "provenance.image_digest": "sha256: and 64 hexadecimal digits in lower case",
    "hardware.usd_per_hour": "0 to 1,000",
    "energy.gco2_per_kwh": "0 to 3,000",
}
"""Place in the entry of what an author says, to what the schema allows there, in words."""


def write_new_entry(out: Path, *, run_dir: Path, glue: Path, author: Author) -> Entry:
    """Write a complete entry to the new folder `out`, whose name is its slug.

    Raises `DataError` if a run is not finished, if the two do not belong together, or if the result
    does not fit the schema.
    """
    if out.exists():
        raise DataError(f"{out} exists already; delete it or choose another --out")
    record = _read_record(run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    records = [m for m in metrics if m["event"] == "train"]
    if not records:
        raise DataError(f"{run_dir} has no records of training steps; train it first")
    runs = [run for run in read_runs(glue) if run.settings.task in TASKS]
    name = f"(run {record['run_id']}, step {records[-1]['step']:,})"
    _require_same_model(runs, name, glue=glue)
    log = chained(log_records(metrics), config_digest=record["config_digest"])
    stored, predictions = _predictions(runs, glue)
    for plugin in record["plugins"]:
        predictions |= {plugin_path(n): text.encode() for n, text in plugin["files"].items()}
    recipe, seed = record["config"]["recipe"], record["config"]["train"]["seed"]
    entry = _entry_of(
        out,
        author,
        recipe if seed == 1 else f"{recipe}, seed {seed}",
        tier="logged",
        model=model_of(record["config"], runs[0].settings.num_parameters),
        data=data_of(record, records[-1]["tokens"], contains_glue=author.contains_glue),
        pretrain=pretrain_of(record, metrics, records),
        hardware=hardware_of(record, usd_per_hour=author.usd_per_hour),
        energy=energy_of(record, gco2_per_kwh=author.gco2_per_kwh),
        finetune=_finetune(runs),
        provenance=provenance_of(
            record, log_sha256=log[-1]["sha256"], image_digest=author.image_digest
        ),
    )
    write_entry(out, entry, runs=stored, predictions=predictions, train_log=log)
    _require_valid(out)
    return entry


def write_random_entry(out: Path, *, run_dir: Path, glue: Path, author: Author) -> Entry:
    """Write an entry of tier *reference*, random weights of a run's shape, to the new folder `out`.

    The board scores its predictions like any entry's and gives it no rank. Raises `DataError` if
    the runs in `glue` are not all runs of one protocol on random weights.
    """
    record = _read_record(run_dir)
    runs = [run for run in read_runs(glue) if run.settings.task in TASKS]
    _require_one_model(runs, glue)
    if not runs[0].settings.random_init:
        raise DataError(f"{glue} has runs that did not start from random weights")
    recipe, finetune = record["config"]["recipe"], _finetune(runs)
    if finetune.protocol == PAPER:
        raise DataError(f"{glue} has not all runs of a protocol that chooses the learning rate")
    note = "A reference, not ranked: the baseline that pretraining must beat."
    stored, predictions = _predictions(runs, glue)
    entry = _entry_of(
        out,
        replace(author, notes=(note, *author.notes)),
        f"{recipe}, random weights",
        tier="reference",
        model=model_of(record["config"], runs[0].settings.num_parameters),
        finetune=replace(finetune, model_sha256=None),
    )
    write_entry(out, entry, runs=stored, predictions=predictions)
    _require_valid(out)
    return entry


def _entry_of(out: Path, author: Author, name: str, **content: Any) -> Entry:
    return Entry(
        schema_version=SCHEMA_VERSION,
        slug=out.resolve().name,
        name=author.name or name,
        date=author.date,
        authors=author.authors,
        contact=author.contact,
        license=author.license,
        links=author.links,
        notes=author.notes,
        **content,
    )


def _require_valid(out: Path) -> None:
    try:
        read_submission(out)
    except Rejected as error:
        raise DataError(f"{out} is written, but would be rejected: {error.reason}") from None


# ---- what belongs together


def _read_record(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir / RECORD_NAME)
    try:
        finished = record["config"]["recipe"], record["attempts"][-1]["precision"]
    except (KeyError, IndexError, TypeError):
        finished = None
    if finished is None:
        raise DataError(f"{run_dir}/run.json is not of a pretraining; expected its --run_dir")
    return record


def _require_one_model(runs: Sequence[RunResult], glue: Path) -> None:
    if len(group_runs(runs)) != 1:
        models = ", ".join(group[0].settings.model for group in group_runs(runs)) or "none"
        raise DataError(f"{glue} has runs of several models or none: {models}; an entry needs one")


def _require_same_model(runs: Sequence[RunResult], expected: str, *, glue: Path) -> None:
    """Exports are named by their run and step (`glue.pretrained.display_name`)."""
    _require_one_model(runs, glue)
    measured = runs[0].settings
    if not measured.model.endswith(expected):
        raise DataError(
            f"{glue} has scores of {measured.model!r}, expected the last step of this run "
            f"{expected}; export the run, then fine-tune the export"
        )
    if measured.random_init or measured.max_train_examples is not None:
        raise DataError(
            f"{glue} was fine-tuned from random weights or on a part of train; an entry needs "
            "the pretrained encoder and all rows of train"
        )
    _require_official_rows(runs, glue)


def _require_official_rows(runs: Sequence[RunResult], glue: Path) -> None:
    """Raise `DataError` for runs on other rows; samples are marked by their gold labels."""
    for run in runs:
        if run.unofficial:
            raise DataError(f"{glue} does not have the official rows: {run.unofficial[0]}")
        if run.settings.split == CHOICE or run.settings.is_sample:
            continue
        task = TASKS[run.settings.task]
        for split in task.dev_splits:
            found = run.data_sha256.get(split, "")
            if reason := order_difference(task, task.split(split), found):
                raise DataError(f"{glue}: {reason}; predictions are matched by position")


# ---- the GLUE run


def _finetune(runs: Sequence[RunResult]) -> Finetune:
    first = to_dict(runs[0].settings)
    for run in runs:
        different = differing_keys(first, to_dict(run.settings))
        for key in SHARED_SETTINGS:
            if key in different:
                raise DataError(
                    f"the GLUE runs mix {key} {different[key][0]!r} and {different[key][1]!r}; "
                    "an entry needs one setting for all tasks"
                )
    chosen, rows, trials = {}, {}, []
    for name in TASKS:
        choice = [run for run in _of(runs, name) if run.settings.split == CHOICE]
        trials.append(len(_of(runs, name)) - len(choice))
        if choice:
            chosen[name] = chosen_rate(choice)
            rows[name] = choice[0].data_sha256.get(CHOICE, "")
    settings = [run.settings for run in runs]
    counted = [s for s in settings if s.split == CHOICE or s.learning_rate == chosen.get(s.task)]
    return Finetune(
        protocol=_protocol(counted, chosen),
        learning_rates=tuple(sorted({s.learning_rate for s in settings})),
        chosen=chosen,
        choice_sha256={name: sha256 for name, sha256 in rows.items() if sha256},
        num_trials=max(trials),
        **{key: first[key] for key in SHARED_SETTINGS},
    )


def _protocol(counted: Sequence[RunSettings], chosen: Mapping[str, float]) -> str:
    for protocol in PROTOCOLS.values():
        # Samples are scored by the same protocol; their gold labels tell them apart. Random weights
        # are an entry of a tier of their own.
        known = (SAMPLE_ROWS, "random_init")
        other = [r for r in departures(protocol, counted) if not r.startswith(known)]
        if protocol.chooses_rate and chosen.keys() <= {*protocol.tasks} and chosen and not other:
            return protocol.name
    return PAPER


def _predictions(runs: Sequence[RunResult], glue: Path) -> tuple[list[StoredRun], dict[str, bytes]]:
    stored, content = [], {}
    for name, task in TASKS.items():
        for run in _of(runs, name):
            s = run.settings
            trial: dict[str, Any] = {k: getattr(s, k) for k in ("learning_rate", "seed", "epochs")}
            paths = {}
            for split in s.scored_splits:
                path = predictions_path(name, split=split, **trial)
                values = read_predictions(run_directory(glue, s), task, split)
                content[path] = predictions_bytes(task, values)
                paths[split] = path
            stored.append(StoredRun(task=name, predictions=paths, **trial))
    if not any("dev" in run.predictions for run in stored):
        raise DataError(f"{glue} has no run with dev scores yet")
    return stored, content


def _of(runs: Sequence[RunResult], task: str) -> list[RunResult]:
    return [run for run in runs if run.settings.task == task]
