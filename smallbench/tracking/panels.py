"""Which charts a run is looked at in: the same in W&B's dashboard and in the HTML report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One chart. A key is `train/…` or `eval/…`: the event of a record, then its field."""

    title: str
    keys: tuple[str, ...]
    unit: str
    is_log: bool = False
    """A logarithmic axis: for what varies over orders of magnitude."""


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel(
            "Masked-token loss",
            ("train/mlm_loss", "eval/mlm_loss", "eval/unigram_entropy"),
            "nats per masked token",
        ),
        Panel(
            "Generator loss",
            ("train/generator_loss", "eval/generator_loss", "eval/unigram_entropy"),
            "nats per masked token",
        ),
        Panel(
            "Discriminator loss",
            ("train/discriminator_loss", "eval/discriminator_loss"),
            "nats per token",
        ),
        Panel("Relation of segments", ("train/relation_loss",), "nats per relation"),
        # Last of the losses: with one term it is that term again.
        Panel("Loss, all terms weighted", ("train/loss", "eval/loss"), "nats"),
        Panel("Masked tokens guessed", ("train/accuracy", "eval/accuracy"), "share"),
        Panel(
            "Generator's guesses that are right",
            ("train/generator_accuracy", "eval/generator_accuracy"),
            "share",
        ),
        Panel(
            "Discriminator's verdicts that are right",
            ("train/discriminator_accuracy", "eval/discriminator_accuracy"),
            "share",
        ),
    ),
    "Optimization": (
        Panel("Learning rate", ("train/learning_rate",), ""),
        Panel("Gradient norm before clipping", ("train/grad_norm",), "", is_log=True),
        Panel("Skipped steps", ("train/skipped_steps",), "steps"),
    ),
    "Machine": (
        Panel("Throughput", ("train/tokens_per_second",), "tokens per second"),
        Panel("Model FLOPs utilization", ("train/mfu",), "share of the peak"),
        Panel("Behind the storage", ("train/sync_lag_steps",), "steps"),
        Panel("Energy", ("train/energy_kwh",), "kWh"),
        Panel("Cost", ("train/cost",), ""),
    ),
}
