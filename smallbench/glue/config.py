"""Settings that fine-tuning runs share; learning rate and seed are set for each run.

No torch here: `--help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import check, option
from smallbench.errors import ConfigError, nearest
from smallbench.glue import POOLINGS

ProtocolName = Literal["robust-v1", "tiny-v1", "paper"]

OWN_HEAD = "head"
"""Value of --pooling for the head of the model's own class."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Hyperparameters of fine-tuning; the defaults are those of all ranked protocols."""

    epochs: int | None = option(None, help="epochs over train; none: 3 for large tasks, else 10")
    batch_size: int = option(32, help="rows per optimizer step (batch size)")
    max_length: int = option(128, help="maximum length in tokens; longer inputs are truncated")
    weight_decay: float = option(0.01, help="AdamW's weight decay; not applied to norms and biases")
    warmup_fraction: float = option(
        0.1, help="warm-up fraction of the steps (Hugging Face: warmup_ratio)"
    )
    clip_norm: float = option(1.0, help="gradient clipping norm (Hugging Face: max_grad_norm)")
    random_init: bool = option(
        False, help="initialize the encoder at random: the baseline that pretraining must beat"
    )
    pooling: str | None = option(
        None,
        help="first, mean or max of the hidden states, under a head that all encoders share; "
        "head: the model's own head; none: the protocol's (tiny-v1: mean, else: head)",
    )
    trust_remote_code: bool = option(
        False, help="run the Python code that comes with the model's files"
    )
    max_train_examples: int | None = option(
        None, help="number of training rows, for a quick test; none: all"
    )
    device: str = option("auto", help="cpu or cuda; auto: a GPU if this machine has one")
    precision: str = option(
        "auto", help="number format: bf16, fp16, fp32; auto: chosen for the device"
    )

    def __post_init__(self) -> None:
        check(self, "", weight_decay=">= 0", clip_norm="> 0", warmup_fraction="[0, 1)")
        # Trying a longer row than 8,192 tokens could take more memory than there is.
        check(self, "", epochs=">= 1", batch_size=">= 1", max_length="[1, 8192]")
        check(self, "", max_train_examples=">= 1")
        if self.pooling not in (None, OWN_HEAD) and self.pooling not in POOLINGS:
            known = [*POOLINGS, OWN_HEAD]
            raise ConfigError(f"unknown pooling {self.pooling!r}; {nearest(self.pooling, known)}")

    @property
    def shared_head(self) -> str | None:
        """Return the pooling of the shared head, or None for the model's own head."""
        return None if self.pooling == OWN_HEAD else self.pooling
