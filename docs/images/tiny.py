"""Draw tiny_scores.png: `python -m docs.images.tiny [GLUE]`, from the root of a checkout.

It also prints each recipe's mean over its entries, and the paired test of `modern-tiny` against
it: the board's draws and variances (`leaderboard.ranking`), where entries of one recipe are its
pretraining seeds; and a t-test whose variance is that of the pairs of seeds, without the board's
assumption.

Lines of the loss are from the logs in `submissions/`, dots from tiny_losses.csv (held-out); an
ELECTRA's are its generator's. Scores along the way are in tiny_scores.csv, from one fine-tuning at
a rate of 6e-4; the last ones are the entries' own.
"""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import norm, t

from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.evaluation import Evaluation, evaluate_all
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.gold import read_gold
from smallbench.leaderboard.ranking import Scored, failure_variance, pretraining_sd

COLORS = {
    "bert-tiny": "#2a62bf",
    "roberta-tiny": "#4c9a2a",
    "deberta-tiny": "#8a4fb0",
    "electra-tiny": "#c79a00",
    "electra-deberta-tiny": "#00897b",
    "modern-tiny": "#c1440e",
}
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
HERE = Path(__file__).parent
WINDOW = 25
"""Records of the log that a point of the loss is the mean of: 500 steps."""


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a table beside this file."""
    with (HERE / name).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def recipe_of(entry: Entry) -> str:
    """Return the recipe of an entry; of a reference its name."""
    return entry.measured.provenance.config["recipe"] if entry.is_measured else entry.name


def recipe(entries: Sequence[Scored], deviation: float) -> Scored:
    """Return a recipe's score from one entry a pretraining seed."""
    failures = [
        task[0]._replace(
            runs=sum(x.runs for x in task),
            failed=sum(x.failed for x in task),
            cost=fmean(x.cost for x in task),
        )
        for task in zip(*(entry.failures for entry in entries), strict=True)
    ]
    return Scored(
        score=fmean(entry.score for entry in entries),
        draws=np.mean([entry.draws for entry in entries], axis=0),
        failures=tuple(failures),
        pretrainings=tuple(entry.score for entry in entries),
        deviation=deviation,
    )


def print_pairs(evaluations: Iterable[Evaluation]) -> None:
    """Print each recipe's mean, and the paired test of modern-tiny against it."""
    entries: dict[str, list[Scored]] = {}
    for one in evaluations:
        view = one.views.get("robust")
        if one.entry and view and view.scored and view.protocol == "tiny-v1":
            entries.setdefault(recipe_of(one.entry), []).append(view.scored)
    deviation = pretraining_sd([entry.score for entry in found] for found in entries.values())
    print(f"standard deviation of AVG between pretrainings of a recipe: {deviation:.2f}")
    recipes = {name: recipe(found, deviation) for name, found in entries.items()}
    best = recipes["modern-tiny"]
    pairs = [one.pretrainings for one in recipes.values() if len(one.pretrainings) == 2]
    spread = float(np.sqrt(np.mean([np.var(pair, ddof=1) for pair in pairs])))
    for name, other in sorted(recipes.items(), key=lambda item: -item[1].score):
        variance = np.var(best.recipe_draws - other.recipe_draws)
        variance += failure_variance([best.failures, other.failures])[0, 1]
        lead = best.score - other.score
        seeds = ", ".join(f"{entry.score:.2f}" for entry in entries[name])
        print(f"{name}: {other.score:.2f} ({seeds})", end="")
        if other is not best:
            error = float(np.sqrt(variance))
            p = 2 * norm.sf(abs(lead) / error)
            print(f"; modern-tiny leads by {lead:.2f} ± {1.96 * error:.1f}, p = {p:.0e}", end="")
            if len(other.pretrainings) == 2:  # the difference of two means of two
                p = 2 * t.sf(abs(lead) / spread, len(pairs))
                print(f"; of the {len(pairs)} pairs of seeds alone, p = {p:.1g}", end="")
        print()


def main(glue: str) -> None:
    """Draw scores and losses against FLOPs; print the table of recipes."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    scores, losses = figure.subplots(1, 2)
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows("tiny_scores.csv"):
        point = float(row["train_flops"]), fmean(float(row[task]) for task in TASKS)
        points.setdefault((row["recipe"], int(row["seed"])), []).append(point)
    for row in rows("tiny_losses.csv"):
        losses.plot(float(row["train_flops"]), float(row["loss"]), ".", color=COLORS[row["recipe"]])
    evaluations = list(evaluate_all(Path("submissions"), read_gold(glue)))
    print_pairs(evaluations)
    for evaluation in evaluations:
        entry, view = evaluation.entry, evaluation.views.get("robust")
        if entry is None or view is None or view.average is None or view.protocol != "tiny-v1":
            continue
        if entry.tier == "reference":
            scores.axhline(view.average, color="0.5", linestyle="--", linewidth=1)
            scores.annotate("random weights", (2e14, view.average), ha="right", va="bottom",
                            color="0.4", fontsize=8)  # fmt: skip
            continue
        name, seed = recipe_of(entry), entry.measured.pretrain.seed
        way = [*sorted(points.get((name, seed), [])), (1.98e14, view.average)]
        style = "-o" if seed == 1 else "--o"
        fill = "full" if seed == 1 else "none"
        scores.plot(*zip(*way, strict=True), style, color=COLORS[name], fillstyle=fill, linewidth=1)
        if seed != 1:
            continue
        log = [x for x in read_submission(evaluation.folder).train_log if x.get("train_flops")]
        flops = np.array([line["train_flops"] for line in log])
        loss = np.convolve([line["mlm_loss"] for line in log], np.ones(WINDOW) / WINDOW, "valid")
        losses.plot(flops[WINDOW - 1 :], loss, color=COLORS[name], label=name)
    scores.set(title="Mean of the five tasks × 100", xlabel="training FLOPs", xlim=(0, 2.1e14))
    losses.set(title="Loss in training, nats per masked token", xlabel="training FLOPs")
    losses.legend(frameon=False, fontsize=8)
    for axes in (scores, losses):
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "tiny_scores.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "hub")
