"""What the pages, the charts and the downloads say of an entry, computed once from its evaluation.

Numbers stay numbers here; how they are written is the templates' work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from smallbench.glue.tasks import TASKS, Task
from smallbench.leaderboard.board import BoardRow, board
from smallbench.leaderboard.entry import Entry, Tier
from smallbench.leaderboard.evaluation import Evaluation
from smallbench.leaderboard.ranking import RankRange
from smallbench.leaderboard.scores import TaskScore, ViewName
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
ARCHITECTURES = {"bert": "BERT", "roberta": "RoBERTa", "deberta": "DeBERTa", "electra": "ELECTRA"}


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
        """From what the entry says and the checks found plausible."""
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
    """None where it is quoted."""
    details: TaskScore | None

    def share(self, task: Task) -> float:
        """Of the way from chance to perfect, 0 to 1: the length of the cell's bar."""
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
    """Task to its cell; tasks that nobody scored are absent."""
    usage: Usage

    @property
    def slug(self) -> str:
        """The entry's."""
        return self.entry.slug

    @property
    def kind(self) -> str:
        """Architecture and objective in a reader's words."""
        model = self.entry.model
        architecture = ARCHITECTURES.get(model.architecture, model.architecture)
        return f"{architecture}, {OBJECTIVES.get(model.objective, model.objective)}"

    @property
    def trials(self) -> str | None:
        """Of how many runs a cell is the best or the mean: `5`, or `3 to 5` where tasks differ."""
        numbers = sorted({c.details.num_runs for c in self.cells.values() if c.details})
        if not numbers:
            return None
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

    @property
    def expected_maximum(self) -> float | None:
        """AVG to expect of the best of `PAPER_TRIALS` trials; None where a task lacks it."""
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
            "expected_maximum": _rounded(self.expected_maximum),
            "kind": self.kind,
            "parameters": entry.model.num_parameters,
            "tokens": self.usage.tokens,
            "gpu": entry.hardware.gpu if entry.hardware else None,
            "gpu_hours": _rounded(self.usage.hours),
            "usd": _rounded(self.usage.usd),
            "kwh": _rounded(self.usage.kwh),
            "kg_co2": _rounded(self.usage.kg_co2),
        }


def rows(evaluations: Sequence[Evaluation], view: ViewName) -> list[Row]:
    """The rows of a view in the board's order."""
    return [_row(found) for found in board(evaluations, view)]


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
    )


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(interval.low), _rounded(interval.high)]


def _rounded(value: float | None) -> float | None:
    """Finer than any score is sure of, and short in a file."""
    return None if value is None else round(value, 4)
