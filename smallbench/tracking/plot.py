"""The loss curve of a run as a picture, drawn from its metrics file."""

from __future__ import annotations

from pathlib import Path

from smallbench.files import atomic_writer
from smallbench.tracking.jsonl import read_metrics


def plot_loss(metrics: Path, out: Path, *, title: str) -> None:
    """Draw training and held-out loss against tokens, in nats, as a PNG at `out`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    train = [r for r in records if r["event"] == "train"]
    held_out = [r for r in records if r["event"] == "eval"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([r["tokens"] / 1e6 for r in train], [r["loss"] for r in train],
              color="#7aa6d8", linewidth=1, label="training")  # fmt: skip
    axes.plot([r["tokens"] / 1e6 for r in held_out], [r["loss"] for r in held_out],
              color="#b3261e", marker="o", markersize=3, label="held-out")  # fmt: skip
    if held_out:
        axes.axhline(held_out[-1]["unigram_entropy"], color="#888", linewidth=1, linestyle="--",
                     label="unigram entropy of the held-out tokens")  # fmt: skip
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per masked token)")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_writer(out) as stream:
        figure.savefig(stream, format="png", dpi=150)
