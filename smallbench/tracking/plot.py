"""The loss curve of a run as a picture, drawn from its metrics file."""

from __future__ import annotations

from pathlib import Path

from smallbench.files import atomic_writer
from smallbench.tracking.jsonl import read_metrics

GUESSING_TERMS = {"mlm", "generator"}
"""Terms whose targets are hidden tokens: guessing by frequency gets the unigrams' entropy."""


def plot_loss(metrics: Path, out: Path, *, title: str) -> None:
    """Draw each term's training and held-out loss against tokens, in nats, as a PNG at `out`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    train = [r for r in records if r["event"] == "train"]
    held_out = [r for r in records if r["event"] == "eval"]
    terms = [key.removesuffix("_loss") for key in (train + held_out)[0] if key.endswith("_loss")]
    figure = Figure(figsize=(7, 3.6 * len(terms) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for term, axes in zip(terms, figure.subplots(len(terms), squeeze=False).flat, strict=True):
        for rows, style in (
            (train, {"color": "#7aa6d8", "linewidth": 1, "label": "training"}),
            (held_out, {"color": "#b3261e", "marker": "o", "markersize": 3, "label": "held-out"}),
        ):
            points = [(r["tokens"] / 1e6, r[key]) for r in rows if (key := f"{term}_loss") in r]
            if points:  # a term may be of training alone
                axes.plot(*zip(*points, strict=True), **style)
        if held_out and term in GUESSING_TERMS:
            style = {"color": "#888", "linewidth": 1, "linestyle": "--"}
            label = "unigram entropy of the held-out tokens"
            axes.axhline(held_out[-1]["unigram_entropy"], label=label, **style)
        axes.set_xlabel("tokens seen (millions)")
        of_term = "relation" if term == "relation" else "token"
        unit = "masked token" if term in GUESSING_TERMS else of_term
        axes.set_ylabel(f"{term} loss (nats per {unit})")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    with atomic_writer(out) as stream:
        figure.savefig(stream, format="png", dpi=150)
