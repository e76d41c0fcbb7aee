"""Values of an entry that pages, charts and downloads show, computed once from its evaluation.

Values stay numbers here; templates format them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from smallbench.glue.tasks import TASKS, Task
from smallbench.gpus import gpu_of_device
from smallbench.leaderboard.board import BoardName, BoardRow, board_rows, half_widths
from smallbench.leaderboard.entry import Entry, Tier
from smallbench.leaderboard.scores import TaskScore
from smallbench.leaderboard.statistics import Interval
from smallbench.leaderboard.verdict import Evaluation
from smallbench.report.scale import Scale

METRICS = {
    "matthews": "Matthews correlation",
    "accuracy": "accuracy",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "f1": "F1",
}
"""Display names."""

OBJECTIVES = {"masked_lm": "masked tokens", "replaced_token": "replaced tokens"}
SHORT_OBJECTIVES = {"masked_lm": "MLM", "replaced_token": "RTD"}
ARCHITECTURES = {"bert": "BERT", "roberta": "RoBERTa", "deberta": "DeBERTa", "electra": "ELECTRA",
                 "roformer": "RoFormer"}  # fmt: skip


SIZES = (15, 30, 60, 120)
"""Size brackets in millions of parameters."""


@dataclass(frozen=True)
class Usage:
    """Resources of a pretraining; None is unknown, not zero."""

    hours: float | None = None
    """Time in steps, on the one GPU."""
    usd: float | None = None
    """Cost of the whole wall-clock time."""
    kwh: float | None = None
    kg_co2: float | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, entry: Entry) -> Usage:
        """Return the usage that an entry declares."""
        if not entry.is_measured:
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
    """None for a quoted score."""
    details: TaskScore | None

    def share(self, task: Task) -> float:
        """Position between chance (0) and perfect (1): the length of the cell's bar."""
        chance = 100 / task.num_labels if task.ranking_metric == "accuracy" else 0.0
        return min(1.0, max(0.0, (self.score - chance) / (100 - chance)))


@dataclass(frozen=True, eq=False)
class Row(BoardRow):
    """A row of a board with the values that only the site shows."""

    @cached_property
    def tier(self) -> Tier:
        """Tier of the entry; a board has no rejected ones."""
        tier = self.evaluation.tier
        assert tier is not None
        return tier

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """Task to its cell; tasks without a score are absent."""
        if self.view is not None:
            return {name: Cell(t.score, t.interval, t) for name, t in self.view.tasks.items()}
        return {n: Cell(self.scores[n], None, None) for n in TASKS if n in self.scores}

    @cached_property
    def usage(self) -> Usage:
        """Resources of the pretraining."""
        return Usage.of(self.entry)

    @property
    def slug(self) -> str:
        """Slug of the entry."""
        return self.entry.slug

    @property
    def kind(self) -> str:
        """Architecture and objective as display names."""
        return self._kind(OBJECTIVES)

    @property
    def short_kind(self) -> str:
        """The same with the objective's usual abbreviation."""
        return self._kind(SHORT_OBJECTIVES)

    def _kind(self, objectives: Mapping[str, str]) -> str:
        model = self.entry.model
        architecture = ARCHITECTURES.get(model.architecture, model.architecture)
        return f"{architecture}, {objectives.get(model.objective, model.objective)}"

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
        """Short name of the GPU, or the driver's name."""
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
    def declared_trials(self) -> int | None:
        """Largest declared number of trials of a task."""
        return None if self.entry.finetune is None else self.entry.finetune.num_trials

    @property
    def flags(self) -> list[str]:
        """Findings that need a person's attention, a sentence each."""
        found = self.evaluation.findings
        return [f"{f.check}: {f.reason}" for f in found if f.verdict == "flagged"]

    @property
    def bracket(self) -> tuple[int, int] | None:
        """The two neighbours in `SIZES` between which its millions of parameters lie."""
        millions = self.entry.model.num_parameters / 1e6
        return next((pair for pair in pairwise((0, *SIZES)) if millions <= pair[1]), None)

    @property
    def expected_maximum(self) -> float | None:
        """Expected AVG of the best of `PAPER_TRIALS` trials; None if a task lacks it."""
        found = [c.details.expected_maximum for c in self.cells.values() if c.details]
        known = [value for value in found if value is not None]
        return fmean(known) if len(known) == len(TASKS) else None

    @cached_property
    def values(self) -> dict[str, Any]:
        """The row of `leaderboard.json` and of the page's own data."""
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
    """Return the rows of a board in its order, those that are not ranked by their tier last."""
    found = [Row(**vars(one)) for one in board_rows(evaluations, name)]
    # Quoted rows with an AVG only come last.
    return sorted(found, key=lambda row: (not row.entry.is_measured, not row.cells))


def task_leads(found: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return slug → task → the rows that it leads on this task, as a hexadecimal number.

    Bit i is row i of `found`. Each pair is tested on its own (`board.half_widths`).
    """
    result: dict[str, dict[str, str]] = {}
    for task in TASKS:
        places = [i for i, row in enumerate(found) if row.view and task in row.view.tasks]
        views = [view for i in places if (view := found[i].view)]
        scores = np.array([view.tasks[task].score for view in views])
        ahead = scores[:, None] - scores > half_widths(views, task) if views else False
        flags = np.zeros((len(places), len(found)), dtype=bool)
        flags[:, places] = ahead
        for place, row in zip(places, np.packbits(flags, axis=1, bitorder="little"), strict=True):
            bits = int.from_bytes(row.tobytes(), "little")
            result.setdefault(found[place].slug, {})[task] = f"{bits:x}"
    return result


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(interval.low), _rounded(interval.high)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---- intervals drawn inside table cells, and records over time

BEST_SHOWN, WORST_SHOWN = 5, 8.0
"""Number of rows that the strips show whole; of the others, what is less than so many points of AVG
below the best."""


@dataclass(frozen=True)
class Strips:
    """The scale of all AVG cells of a view, and the leader's interval on it."""

    scale: Scale
    leader: Interval | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Strips | None:
        """Return the strips; None if no row has an AVG."""
        scored = [row for row in rows if row.average is not None]
        scored.sort(key=lambda row: (row.rank is None, -(row.average or 0.0)))
        if not scored:
            return None
        lowest = (scored[0].average or 0.0) - WORST_SHOWN
        shown = []
        for place, row in enumerate(scored):
            ends = (row.interval.low, row.interval.high) if row.interval else ()
            values = (row.average or 0.0, *ends)
            shown += [value for value in values if place < BEST_SHOWN or value > lowest]
        low, high = min(shown), max(shown)
        air = max(high - low, 1.0) * 0.06
        leader = next((row.interval for row in rows if row.interval), None)
        return cls(Scale(low - air, high + air), leader)

    def draw(self, row: Row) -> tuple[str, str, tuple[str, str] | None, bool]:
        """Return the arguments of the templates' `interval_svg`."""
        assert row.average is not None
        line, dots = strip([row.average], row.interval, self.scale)
        if self.leader is None:
            return line, dots, None, row.interval is None
        low, high = (100 * self.scale.place(end) for end in (self.leader.low, self.leader.high))
        return line, dots, (f"{low:.1f}", f"{high - low:.1f}"), row.interval is None


def strip(values: Iterable[float], interval: Interval | None, scale: Scale) -> tuple[str, str]:
    """Return the paths of an interval and of dots on a line of length 100."""

    def at(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, scale.place(value))):.1f}"

    line = f"M{at(interval.low)} 5H{at(interval.high)}" if interval else ""
    return line, "".join(f"M{at(value)} 5h0" for value in values)


def records(rows: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Return the entries that set a record, oldest first, each with its gain over the last one."""
    found: list[tuple[Row, float | None]] = []
    best: float | None = None
    for row in sorted(rows, key=lambda row: (row.entry.date, -(row.average or 0.0), row.slug)):
        if row.average is not None and row.rank and (best is None or row.average > best):
            found.append((row, None if best is None else row.average - best))
            best = row.average
    return found
