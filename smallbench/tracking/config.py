"""Where the numbers of a job are shown besides its own files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import option


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Nothing leaves the machine unless asked; `SMALLBENCH_TRACKER=wandb` asks for every job."""

    tracker: Literal["none", "wandb"] = option(
        "none", help="also show the numbers in Weights & Biases; offline if it has no key"
    )
    wandb_project: str = option(
        "smallbench", help="project there; the entity is WANDB_ENTITY's, or the key's"
    )
