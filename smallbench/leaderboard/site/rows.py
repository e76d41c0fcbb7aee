"""What pages, charts and downloads show of an entry, computed once from its evaluation.

Numbers stay numbers here; how they are written is the templates' work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from smallbench.glue.tasks import TASKS, Task
from smallbench.gpus import gpu_of_device
from smallbench.leaderboard.board import BoardName, BoardRow, board_rows, half_widths
from smallbench.leaderboard.entry import Entry, Tier
from smallbench.leaderboard.evaluation import Evaluation
from smallbench.leaderboard.ranking import RankRange
from smallbench.leaderboard.scores import TaskScore, View
from smallbench.leaderboard.statistics import Interval

METRICS = {
    "matthews": "Matthews correlation",
    "accuracy": "accuracy",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "f1": "F1",
}
"""How a reader calls them."""

OBJECTIVES = {"masked_lm": "masked tokens", "replaced_token": "replaced tokens"}
SHORT_OBJECTIVES = {"masked_lm": "MLM", "replaced_token": "RTD"}
ARCHITECTURES = {"bert": "BERT", "roberta": "RoBERTa", "deberta": "DeBERTa", "electra": "ELECTRA"}


SIZES = (15, 30, 60, 120)
"""Millions of parameters: the size brackets."""


@dataclass(frozen=True)
class Usage:
    """What a pretraining took; None is unknown, which is not zero."""

    hours: float | None = None
    """In steps, on the one GPU."""
    usd: float | None = None
    """For the whole time, steps or not."""
    kwh: float | None = None
    kg_co2: float | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, entry: Entry) -> Usage:
        """Return the usage that an entry declares."""
        if entry.reported is not None:
            return cls()
        measured = entry.measured
        pretrain, energy, price = measured.pretrain, measured.energy, measured.hardware.usd_per_hour
        known = energy.kwh is not None and energy.gco2_per_kwh is not None
        return cls(
            hours=pretrain.gpu_active_seconds / 3600,
            usd=None if price is None else price * pretrain.wall_seconds / 3600,
            kwh=energy.kwh,
            kg_co2=energy.kwh * energy.gco2_per_kwh / 1000 if known else None,  # type: ignore[operator]
            tokens=pretrain.num_tokens,
        )


@dataclass(frozen=True)
class Cell:
    """One task's score × 100."""

    score: float
    interval: Interval | None
    """None if it is quoted."""
    details: TaskScore | None

    def share(self, task: Task) -> float:
        """Position between chance (0) and perfect (1): the length of the cell's bar."""
        chance = 100 / task.num_labels if task.ranking_metric == "accuracy" else 0.0
        return min(1.0, max(0.0, (self.score - chance) / (100 - chance)))


@dataclass(frozen=True, eq=False)
class Row:
    """An entry in one view."""

    entry: Entry
    evaluation: Evaluation
    tier: Tier
    rank: RankRange | None
    leads: frozenset[str]
    """Slugs of the entries over which its lead counts."""
    average: float | None
    interval: Interval | None
    cells: Mapping[str, Cell]
    """Task to its cell; tasks without a score are absent."""
    usage: Usage
    view: View | None
    """None for reported scores."""

    @property
    def slug(self) -> str:
        """Slug of the entry."""
        return self.entry.slug

    @property
    def kind(self) -> str:
        """Architecture and objective in a reader's words."""
        model = self.entry.model
        architecture = ARCHITECTURES.get(model.architecture, model.architecture)
        return f"{architecture}, {OBJECTIVES.get(model.objective, model.objective)}"

    @property
    def short_kind(self) -> str:
        """The same with the objective's usual abbreviation."""
        model = self.entry.model
        architecture = ARCHITECTURES.get(model.architecture, model.architecture)
        return f"{architecture}, {SHORT_OBJECTIVES.get(model.objective, model.objective)}"

    @property
    def trials(self) -> str | None:
        """Number of runs of a cell: `5`, or `3 to 5` if tasks differ.

        If more trials are declared than have predictions, the best is of the declared ones.
        """
        numbers = sorted({c.details.num_runs for c in self.cells.values() if c.details})
        if not numbers:
            return None
        if (declared := self.declared_trials or 0) > numbers[-1]:
            return f"{declared:,}"
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

    @property
    def gpu(self) -> str | None:
        """The card's short name, or what the driver calls it."""
        if self.entry.hardware is None:
            return None
        known = gpu_of_device(self.entry.hardware.gpu)
        return known.name if known else self.entry.hardware.gpu

    @property
    def links(self) -> list[tuple[str, str]]:
        """Name and address of code, paper, weights and training curves."""
        links = self.entry.links
        weights = links.huggingface
        if weights and links.huggingface_revision:
            weights = f"{weights.rstrip('/')}/tree/{links.huggingface_revision}"
        named = {"Code": links.code, "Paper": links.paper, "W&B": links.wandb, "Weights": weights}
        return [(name, url) for name, url in named.items() if url and url.startswith("https://")]

    @property
    def has_log(self) -> bool:
        """Whether the training log travels with the entry."""
        provenance = self.entry.provenance
        return provenance is not None and provenance.train_log_sha256 is not None

    @property
    def declared_trials(self) -> int | None:
        """Most trials of a task, as the entry declares."""
        return None if self.entry.finetune is None else self.entry.finetune.num_trials

    @property
    def flags(self) -> list[str]:
        """Findings that a person should look at, a sentence each."""
        found = self.evaluation.findings
        return [f"{f.check}: {f.reason}" for f in found if f.verdict == "flagged"]

    @property
    def bracket(self) -> int | None:
        """Smallest of `SIZES` that holds its millions of parameters."""
        millions = self.entry.model.num_parameters / 1e6
        return next((size for size in SIZES if millions <= size), None)

    @property
    def expected_maximum(self) -> float | None:
        """AVG to expect of the best of `PAPER_TRIALS` trials; None if a task lacks it."""
        found = [c.details.expected_maximum for c in self.cells.values() if c.details]
        known = [value for value in found if value is not None]
        return fmean(known) if len(known) == len(TASKS) else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: a row of `leaderboard.json` and of the page's own data."""
        entry = self.entry
        return {
            "slug": self.slug,
            "name": entry.name,
            "tier": self.tier,
            "date": entry.date,
            "authors": list(entry.authors),
            "rank": None if self.rank is None else [self.rank.best, self.rank.worst],
            "average": _rounded(self.average),
            "interval": _ends(self.interval),
            "tasks": {
                name: {"score": _rounded(cell.score), "interval": _ends(cell.interval)}
                for name, cell in self.cells.items()
            },
            "trials": self.trials,
            "declared_trials": self.declared_trials,
            "flags": self.flags,
            "tracks": list(self.evaluation.tracks),
            "architecture": entry.model.architecture,
            "objective": entry.model.objective,
            "expected_maximum": _rounded(self.expected_maximum),
            "kind": self.kind,
            "parameters": entry.model.num_parameters,
            "tokens": self.usage.tokens,
            "gpu": self.gpu,
            "gpu_hours": _rounded(self.usage.hours),
            "usd": _rounded(self.usage.usd),
            "kwh": _rounded(self.usage.kwh),
            "kg_co2": _rounded(self.usage.kg_co2),
        }


def rows(evaluations: Sequence[Evaluation], name: BoardName) -> list[Row]:
    """Return the rows of a board in its order, reported ones last."""
    found = [_row(one) for one in board_rows(evaluations, name)]
    # A reference of which only AVG is known comes last.
    return sorted(found, key=lambda row: (row.tier == "reported", not row.cells))


def _row(found: BoardRow) -> Row:
    tier = found.evaluation.tier
    assert tier is not None, "a board has no rejected entries"
    if found.view is not None:
        tasks = found.view.tasks
        cells = {name: Cell(t.score, t.interval, t) for name, t in tasks.items()}
    else:
        assert found.entry.reported is not None
        quoted = found.entry.reported.scores
        cells = {name: Cell(quoted[name], None, None) for name in TASKS if name in quoted}
    return Row(
        entry=found.entry,
        evaluation=found.evaluation,
        tier=tier,
        rank=found.rank,
        leads=found.leads,
        average=found.average,
        interval=found.interval,
        cells=cells,
        usage=Usage.of(found.entry),
        view=found.view,
    )


def task_leads(found: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return slug → task → the rows that it leads on this task, as a number in hexadecimal digits.

    Bit i is row i of `found`. Each pair is tested by itself (`board.half_widths`).
    """
    result: dict[str, dict[str, str]] = {}
    for task in TASKS:
        places = [i for i, row in enumerate(found) if row.view and task in row.view.tasks]
        views = [view for i in places if (view := found[i].view)]
        scores = np.array([view.tasks[task].score for view in views])
        ahead = scores[:, None] - scores > half_widths(views, task) if views else ()
        for place, row in zip(places, ahead, strict=True):
            bits = sum(1 << places[other] for other in np.flatnonzero(row))
            result.setdefault(found[place].slug, {})[task] = f"{bits:x}"
    return result


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(interval.low), _rounded(interval.high)]


def _rounded(value: float | None) -> float | None:
    """Round to four decimals, to keep files small."""
    return None if value is None else round(value, 4)
