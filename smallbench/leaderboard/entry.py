"""An entry of the leaderboard: what a submission's folder holds.

    submissions/SLUG/entry.json            who, what, how (`entry.schema.json` is its law)
    submissions/SLUG/runs.jsonl            a line for each fine-tuning: task, rate, seed, epochs
    submissions/SLUG/predictions/*.tsv.gz  what each answered on dev: index<TAB>prediction
    submissions/SLUG/plugins/*.py          code of its own, which nothing here ever runs
    submissions/SLUG/train_log.jsonl       the pretraining's records, chained by SHA-256

It has no scores: `scores` computes them from the predictions. `folder` reads what a stranger sent;
here is what a valid entry means, and how one is written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray

from smallbench import config, files
from smallbench.glue.tasks import Task

SCHEMA_VERSION = 1
ENTRY_FILE, RUNS_FILE, LOG_FILE = "entry.json", "runs.jsonl", "train_log.jsonl"
PREDICTIONS_FOLDER, PLUGINS_FOLDER = "predictions", "plugins"

Tier = Literal["reported", "reference", "claimed", "logged", "verified"]
TIERS: tuple[Tier, ...] = ("reported", "reference", "claimed", "logged", "verified")
"""Tiers: quoted scores; recomputed ones of random weights, and of a pretrained model; also with a
training log; repeated by a keeper. The first two are not ranked."""


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `entry.json`; `$defs` has lines of the other files."""
    text = package_files(__package__).joinpath("entry.schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Links:
    """Links to code, paper and weights; https only."""

    code: str | None = None
    paper: str | None = None
    wandb: str | None = None
    huggingface: str | None = None
    huggingface_revision: str | None = None


@dataclass(frozen=True)
class Model:
    """The trained model; sizes are of the encoder without a head."""

    architecture: str
    objective: str
    num_parameters: int
    num_parameters_without_embeddings: int | None
    num_hidden_layers: int | None
    hidden_size: int | None
    num_attention_heads: int | None
    intermediate_size: int | None
    embedding_size: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    type_vocab_size: int | None
    from_scratch: bool
    distilled_from: str | None


SIZE_NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "embedding_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
"""Fields of `Model` with the same names in a model's configuration."""


@dataclass(frozen=True)
class Data:
    """The pretraining corpus."""

    name: str
    revision: str | None
    sha256: str
    unique_tokens: int
    epochs: float
    contains_glue: bool


@dataclass(frozen=True)
class Stage:
    """Steps with one batch size and one length."""

    num_steps: int
    global_batch_size: int
    sequence_length: int

    @property
    def num_tokens(self) -> int:
        """Number of positions of all its batches."""
        return self.num_steps * self.global_batch_size * self.sequence_length


@dataclass(frozen=True)
class Pretrain:
    """Steps, batch, length, tokens and time."""

    num_steps: int
    global_batch_size: int
    sequence_length: int
    ramps: tuple[Stage, ...]
    num_tokens: int
    wall_seconds: float
    gpu_active_seconds: float
    precision: str
    seed: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The declared ramps, or one stage."""
        return self.ramps or (
            Stage(self.num_steps, self.global_batch_size, self.sequence_length),
        )  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """The one device."""

    gpu: str
    count: int
    memory_bytes: int | None
    peak_tflops: float | None
    driver: str | None
    torch: str
    usd_per_hour: float | None


@dataclass(frozen=True)
class Energy:
    """Energy of the run; None is unknown, not zero."""

    kwh: float | None
    method: str | None
    gco2_per_kwh: float | None


@dataclass(frozen=True)
class Finetune:
    """Settings of fine-tuning, the same for every task."""

    protocol: str
    learning_rates: tuple[float, ...]
    chosen: Mapping[str, float]
    """Task to the learning rate chosen on a part of train, for the robust view."""
    num_trials: int
    batch_size: int
    max_length: int
    weight_decay: float
    warmup_fraction: float
    clip_norm: float
    precision: str
    model_sha256: str | None
    """None of a reference, whose weights are random."""
    choice_sha256: Mapping[str, str] = field(default_factory=dict)
    """Task to the hash of the rows of train that chose its learning rate."""
    pooling: str | None = None
    """`first`, `mean` or `max` under the shared head; None: the model's own head."""


@dataclass(frozen=True)
class Provenance:
    """The code and its configuration."""

    code_version: str
    git_commit: str | None
    dirty: bool
    image_digest: str | None
    command: tuple[str, ...]
    config_digest: str
    config: Mapping[str, Any]
    train_log_sha256: str | None
    plugins: tuple[Mapping[str, Any], ...] = ()
    """Name, SHA-256 and files of the run's plug-ins; the code is in `plugins/`."""


@dataclass(frozen=True)
class Reported:
    """Scores × 100 from another publication; `scores` may lack tasks."""

    source: str
    scores: Mapping[str, float]
    average: float
    protocol: str = "paper"
    """The board for these scores."""


@dataclass(frozen=True)
class MeasuredSections:
    """The sections of every entry of a pretrained model whose scores are recomputed."""

    model: Model
    data: Data
    pretrain: Pretrain
    hardware: Hardware
    energy: Energy
    finetune: Finetune
    provenance: Provenance


@dataclass(frozen=True)
class Entry:
    """`entry.json`.

    Of the sections after `model`, tier *reported* has `reported` alone, *reference* has `finetune`
    alone, and other tiers have all others.
    """

    schema_version: int
    slug: str
    name: str
    date: str
    authors: tuple[str, ...]
    contact: str | None
    license: str | None
    links: Links
    tier: Tier
    notes: tuple[str, ...]
    model: Model
    data: Data | None = None
    pretrain: Pretrain | None = None
    hardware: Hardware | None = None
    energy: Energy | None = None
    finetune: Finetune | None = None
    provenance: Provenance | None = None
    reported: Reported | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it is a pretrained model with recomputed scores, which a track may rank."""
        return self.provenance is not None

    @property
    def measured(self) -> MeasuredSections:
        """The sections of an entry that is measured."""
        sections = {name: getattr(self, name) for name in MeasuredSections.__annotations__}
        assert None not in sections.values(), "the schema demands them"
        return MeasuredSections(**sections)


@dataclass(frozen=True)
class StoredRun:
    """A line of `runs.jsonl`."""

    task: str
    learning_rate: float
    seed: int
    epochs: int
    predictions: Mapping[str, str]
    """Dev split, or `choice`, to its file below the entry's folder."""


SECTIONS = {"links": Links, **get_type_hints(MeasuredSections), "reported": Reported}


def entry_from_dict(content: Mapping[str, Any]) -> Entry:
    """Return the typed view of content that the schema allows."""
    values = _tuples(content)
    for name, cls in SECTIONS.items():
        if name in values:
            values[name] = cls(**_tuples(values[name]))
    if "pretrain" in values:
        ramps = tuple(Stage(**stage) for stage in content["pretrain"]["ramps"])
        values["pretrain"] = replace(values["pretrain"], ramps=ramps)
    return Entry(**values)


def entry_to_dict(entry: Entry) -> dict[str, Any]:
    """Return the content of `entry.json`: the inverse of `entry_from_dict`."""
    content = config.to_dict(entry)
    return {k: v for k, v in content.items() if v is not None or k not in SECTIONS}


def _tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


# ---- lines of the log

MAX_LOGGED = 1e15  # of a line of the log: seconds, losses, rates
MAX_LOGGED_FLOPS = 1e24
PEAK_KEY, FLOPS_KEY = "peak_memory_bytes", "train_flops"
_LIMITS = {PEAK_KEY: MAX_LOGGED, FLOPS_KEY: MAX_LOGGED_FLOPS}
"""Optional keys of a line: a CPU has no GPU memory, and older logs have neither."""
_LOG_KEYS = {"step", "tokens", "seconds", "loss", "mlm_loss", "tokens_per_second", "sha256"}


def is_log_line(line: Any) -> bool:
    """Return whether a line of the log has the keys and types of the schema's `train_log_line`."""
    if type(line) is not dict or not _LOG_KEYS <= line.keys() <= _LOG_KEYS | _LIMITS.keys():
        return False
    for key, number in line.items():
        if key == "sha256" or number is None:
            continue
        if type(number) is not int and type(number) is not float:
            return False
        most = _LIMITS.get(key)
        if not (-MAX_LOGGED <= number <= MAX_LOGGED if most is None else 0 <= number <= most):
            return False
    seconds = line["seconds"]
    return (
        all(type(line[key]) is int and 0 <= line[key] < 1 << 53 for key in ("step", "tokens"))
        and seconds is not None
        and seconds >= 0
        and type(line["sha256"]) is str
    )


# ---- writing


def predictions_path(task: str, *, learning_rate: float, seed: int, epochs: int, split: str) -> str:
    """Return `predictions/cola_lr-0.0001_epochs-10_seed-1_dev.tsv.gz`."""
    stem = f"{task}_lr-{learning_rate:g}_epochs-{epochs}_seed-{seed}_{split}"
    return f"{PREDICTIONS_FOLDER}/{stem}.tsv.gz"


def predictions_bytes(task: Task, values: NDArray[Any]) -> bytes:
    """Return [N] classes or scores as a gzipped predictions file; equal input gives equal bytes."""
    if task.label_names is not None:
        words = [task.label_names[value] for value in values.tolist()]
    else:
        words = [repr(value) for value in np.asarray(values, dtype=np.float64).tolist()]
    lines = ["index\tprediction", *(f"{i}\t{word}" for i, word in enumerate(words)), ""]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def recipe_digest(entry: Entry) -> str:
    """Return a digest of the configuration without its seed."""
    settings = dict(entry.measured.provenance.config)
    if isinstance(settings.get("train"), Mapping):
        settings["train"] = {k: v for k, v in settings["train"].items() if k != "seed"}
    return config.digest(settings)


def chained(records: Iterable[Mapping[str, Any]], *, config_digest: str) -> list[dict[str, Any]]:
    """Return records of a training log, each linked by a hash to the one before."""
    lines, previous = [], config_digest
    for record in records:
        previous = link(previous, record)
        lines.append({**record, "sha256": previous})
    return lines


def link(previous: str, record: Mapping[str, Any]) -> str:
    """Return the link of a record: SHA-256 of the previous link and its JSON without link."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def write_entry(
    folder: Path,
    entry: Entry,
    *,
    runs: Sequence[StoredRun] = (),
    predictions: Mapping[str, bytes] | None = None,
    train_log: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write an entry's files; `predictions` maps a path below `folder` to its bytes.

    `entry.json` comes last: its presence means that the folder is complete.
    """
    for path, content in (predictions or {}).items():
        files.write_bytes(folder / path, content)
    if runs:
        files.write_text(folder / RUNS_FILE, _lines(map(config.to_dict, runs)))
    if train_log:
        files.write_text(folder / LOG_FILE, _lines(train_log))
    files.write_json(folder / ENTRY_FILE, entry_to_dict(entry))


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)
