"""What the board's intervals, leads and ranges promise, measured on simulated boards.

Every entry of a board has a known true AVG: over dev sets, fine-tuning seeds, pretraining seeds and
failed runs. Dev sets have at most --examples rows a task and one metric, accuracy, so that hundreds
of boards take minutes. "before" is the method before commit bab9a7b: one-sided paired bootstrap of
each pair, percentile intervals, failed runs drawn like others, no pretraining seed.

    python -m benchmarks.board_statistics [--boards=1000] [--entries=2,10,50] …
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import ranking, statistics
from smallbench.leaderboard.ranking import Scored

NUM_DRAWS = 1_000
# Accuracy of a small encoder and the standard deviation of its seeds, in points.
LEVELS = {"cola": (79, 1.3), "sst2": (90, 0.5), "mrpc": (86, 0.7), "stsb": (86, 0.3),
          "qqp": (89, 0.2), "mnli": (80, 0.3), "qnli": (87, 0.3), "rte": (66, 1.9)}  # fmt: skip
MAJORITY = {"cola": 69, "sst2": 51, "mrpc": 68, "stsb": 50, "qqp": 63, "mnli": 36, "qnli": 51,
            "rte": 53}  # fmt: skip
HARDNESS = 2.5
"""Of rows, in logits: models agree on easy and hard ones."""
PRETRAINING_SD = 0.4
"""Points of AVG between pretrainings of one recipe."""
SIMULATED = {name: replace(task, ranking_metric="accuracy") for name, task in TASKS.items()}


@dataclass(frozen=True)
class Setting:
    """A kind of board."""

    num_entries: int
    num_seeds: int
    failure_rate: float
    spread: float = 0.0
    """Standard deviation of the entries' true quality, in points; 0: all are equal."""
    num_pretrainings: int = 1


# Quantiles of the normal distribution, so that the truth has no sampling error.
GRID = HARDNESS * norm.ppf((np.arange(4000) + 0.5) / 4000)


def _mean_accuracy(logits: np.ndarray) -> np.ndarray:
    """Points at a logit, on average over rows."""
    flat = np.asarray(logits).reshape(-1, 1)
    return 100 * (1 / (1 + np.exp(GRID - flat))).mean(axis=1).reshape(np.shape(logits))


_POINTS = np.linspace(-4, 12, 600)
_ACCURACY = _mean_accuracy(_POINTS)


def _logit_of(points: np.ndarray) -> np.ndarray:
    return np.interp(points, _ACCURACY, _POINTS)


@dataclass
class Board:
    """Simulated entries with their true AVG."""

    truth: np.ndarray
    tasks: list[list[tuple[str, np.ndarray, np.ndarray]]]
    """Entry → (task, [S, N] right, [S] failed)."""


def simulate(setting: Setting, rng: np.random.Generator, examples: int) -> Board:
    """Draw one board."""
    quality = rng.normal(0, setting.spread, setting.num_entries)
    hardness = {
        name: rng.normal(0, HARDNESS, min(task.split("dev").num_rows, examples))
        for name, task in TASKS.items()
    }
    majority = {name: rng.random(len(h)) < MAJORITY[name] / 100 for name, h in hardness.items()}
    truth, entries = [], []
    for points in quality:
        entry, true = [], []
        # A part common to all tasks and one of each: together PRETRAINING_SD of AVG.
        common = rng.normal(0, PRETRAINING_SD * np.sqrt(0.5), setting.num_pretrainings)
        for name, (level, sd) in LEVELS.items():
            own = rng.normal(0, PRETRAINING_SD * np.sqrt(0.5 * 8), setting.num_pretrainings)
            move = np.repeat(common + own, setting.num_seeds)
            runs = level + points + move + rng.normal(0, sd, len(move))
            chance = 1 / (1 + np.exp(hardness[name] - _logit_of(runs)[:, None]))
            right = rng.random(chance.shape) < chance
            failed = rng.random(len(runs)) < setting.failure_rate
            right[failed] = majority[name]
            entry.append((name, right, failed))
            true.append((1 - setting.failure_rate) * (level + points)
                        + setting.failure_rate * MAJORITY[name])  # fmt: skip
        truth.append(np.mean(true))
        entries.append(entry)
    return Board(np.array(truth), entries)


def scored(entry, majority_rows, num_pretrainings: int) -> Scored:
    """As `scores.View.scored` puts it together."""
    draws, failures, published = [], [], []
    for name, right, failed in entry:
        learned = right[~failed] if not failed.all() else right
        task, labels = SIMULATED[name], np.ones(right.shape[1], dtype=bool)
        draws.append(statistics.bootstrap_task(task, learned, labels, num_draws=NUM_DRAWS))
        cost = max(0.0, 100 * learned.mean() - majority_rows[name])
        failures.append(ranking.Failures(len(failed), int(failed.sum()), cost / len(entry)))
        published.append(100 * right.mean())
    groups: tuple[float, ...] = ()
    if num_pretrainings > 1:
        split = [right.reshape(num_pretrainings, -1).mean(axis=1) for _, right, _ in entry]
        groups = tuple(100 * np.mean(split, axis=0))
    return Scored(
        score=float(np.mean(published)),
        draws=np.mean(draws, axis=0),
        failures=tuple(failures),
        pretrainings=groups,
    )


def before(entry) -> np.ndarray:
    """[R] draws of AVG by the method before commit bab9a7b."""
    drawn = [
        statistics.bootstrap_task(SIMULATED[name], right, np.ones(right.shape[1], dtype=bool),
                                  num_draws=NUM_DRAWS)
        for name, right, _ in entry
    ]  # fmt: skip
    return np.mean(drawn, axis=0)


def _one_sided_leads(draws_ER: np.ndarray) -> np.ndarray:
    wins = (draws_ER[:, None] > draws_ER[None]).mean(axis=2)
    found = wins >= 0.95
    np.fill_diagonal(found, False)
    return found


def _outcome(leads, truth, low, high) -> dict[str, float]:
    ahead = truth[:, None] > truth[None, :] + 1e-9
    num = len(truth)
    false = leads & ~ahead
    pairs = np.triu(np.ones((num, num), dtype=bool), 1)
    ranks = ranking.rank_ranges(leads)
    # True ranks: equal entries share the places from best to worst.
    best, worst = 1 + ahead.sum(axis=0), num - ahead.sum(axis=1)
    inside = all(r.best <= b and r.worst >= w for r, b, w in zip(ranks, best, worst, strict=True))
    return {
        "false pair": float((false | false.T)[pairs].mean()) if num > 1 else 0.0,
        "false board": float(false.any()),
        "ranges": float(inside),
        "interval": float(((low <= truth) & (truth <= high)).mean()),
        "width": float((high - low).mean()),
        "leads": float((leads & ahead).sum() / max(1, ahead.sum())),
    }


def measure(setting: Setting, boards: int, examples: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Average outcomes, before and after."""
    rng = np.random.default_rng(11)
    majority = {name: float(v) for name, v in MAJORITY.items()}
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for _ in range(boards):
        board = simulate(setting, rng, examples)
        old = np.stack([before(entry) for entry in board.tasks])
        low, high = np.percentile(old, [2.5, 97.5], axis=1)
        found["before"].append(_outcome(_one_sided_leads(old), board.truth, low, high))
        entries = [scored(entry, majority, setting.num_pretrainings) for entry in board.tasks]
        rates = ranking.failure_rates(entries, NUM_DRAWS)
        ends = [ranking.score_interval(entry, rates) for entry in entries]
        low, high = np.array([e.low for e in ends]), np.array([e.high for e in ends])
        together = ranking.differences(entries)
        outcome = _outcome(together.leads, board.truth, low, high)
        true = board.truth[:, None] - board.truth
        away = np.abs(together.difference - true)
        outcome["all differences"] = float((away <= together.half_width + 1e-9).all())
        found["after"].append(outcome)
    for name, outcomes in found.items():
        yield name, {key: float(np.mean([o[key] for o in outcomes])) for key in outcomes[0]}


def main() -> None:
    """Print the table as Markdown, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=1000, help="of two entries; larger: fewer")
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--entries", default="2,10,50")
    parser.add_argument("--seeds", default="3,5")
    parser.add_argument("--failures", default="0,0.05,0.1")
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--pretrainings", type=int, default=1)
    a = parser.parse_args()
    print("| entries | seeds | failed | boards | " + " | ".join(COLUMNS.values()) + " |")
    print("|--:" * (4 + len(COLUMNS)) + "|", flush=True)
    for num in map(int, a.entries.split(",")):
        boards = max(40, a.boards * 2 // num)
        for seeds in map(int, a.seeds.split(",")):
            for rate in map(float, a.failures.split(",")):
                setting = Setting(num, seeds, rate, a.spread, a.pretrainings)
                found = dict(measure(setting, boards, a.examples))
                cells = [_cell(found, key) for key in COLUMNS]
                print(f"| {num} | {seeds} | {rate:.0%} | {boards} | {' | '.join(cells)} |",
                      flush=True)  # fmt: skip


COLUMNS = {
    "false pair": "pairs with a false lead",
    "false board": "boards with a false lead",
    "ranges": "boards with all ranks in their ranges",
    "interval": "intervals that cover",
    "width": "width of an interval",
    "leads": "true leads found",
}


def _cell(found: dict[str, dict[str, float]], key: str) -> str:
    before, after = (found[name][key] for name in ("before", "after"))
    if key == "width":
        return f"{before:.1f} → {after:.1f}"
    return f"{100 * before:.1f} → {100 * after:.1f} %"


if __name__ == "__main__":
    main()
