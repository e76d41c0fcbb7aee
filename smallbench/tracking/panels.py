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


def _both(field: str, *more: str) -> tuple[str, ...]:
    return (f"train/{field}", f"eval/{field}", *more)


ENTROPY = "eval/unigram_entropy"
PER_MASKED = "nats per masked token"
SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("Masked-token loss", _both("mlm_loss", ENTROPY), PER_MASKED),
        Panel("Generator loss", _both("generator_loss", ENTROPY), PER_MASKED),
        Panel("Discriminator loss", _both("discriminator_loss"), "nats per token"),
        Panel("Relation of segments", ("train/relation_loss",), "nats per relation"),
        # Last of the losses: with one term it is that term again.
        Panel("Loss, all terms weighted", _both("loss"), "nats"),
        Panel("Masked tokens guessed", _both("accuracy"), "share"),
        Panel("Generator's guesses that are right", _both("generator_accuracy"), "share"),
        Panel("Discriminator's verdicts that are right", _both("discriminator_accuracy"), "share"),
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
