"""Configuration of trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import option


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Nothing leaves the machine unless asked; `SMALLBENCH_TRACKER=wandb` asks for every job."""

    tracker: Literal["none", "wandb"] = option(
        "none", help="also show the metrics in Weights & Biases; offline if no key is set"
    )
    wandb_project: str = option(
        "smallbench", help="W&B project; the entity is WANDB_ENTITY, or the key's"
    )
