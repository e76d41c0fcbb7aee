"""Configuration that fine-tuning runs share; each has a learning rate and a seed of its own.

No torch here: `--help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallbench.config import option, require
from smallbench.errors import ConfigError
from smallbench.glue import POOLINGS
from smallbench.registry import nearest

OWN_HEAD = "head"
"""As --pooling: the head of the model's own class."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Hyper-parameters; the defaults are those of all ranked protocols."""

    epochs: int | None = option(None, help="passes over train; none: 3 for large tasks, else 10")
    batch_size: int = option(32, help="rows per optimizer step")
    max_length: int = option(128, help="tokens; longer inputs are cut")
    weight_decay: float = option(0.01, help="AdamW's; norms and biases do not decay")
    warmup_fraction: float = option(0.1, help="part of the steps in which the rate rises")
    clip_norm: float = option(1.0, help="largest norm of the gradient")
    random_init: bool = option(
        False, help="draw the encoder's weights at random: what pretraining must beat"
    )
    pooling: str | None = option(
        None,
        help="first, mean or max of the hidden states, under a head that all encoders share; "
        "head: the model's own head; none: the protocol's (tiny-v1: mean, else: head)",
    )
    trust_remote_code: bool = option(
        False, help="run the Python code that comes with the model's files"
    )
    max_train_examples: int | None = option(None, help="only the first rows of train: a quick look")
    device: str = option("auto", help="auto, cpu or cuda")
    precision: str = option("auto", help="auto, bf16, fp16 or fp32")

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.clip_norm > 0, "clip_norm", self.clip_norm, "over 0")
        key = "warmup_fraction"
        require(0 <= self.warmup_fraction < 1, key, self.warmup_fraction, "at least 0, under 1")
        if self.pooling not in (None, OWN_HEAD) and self.pooling not in POOLINGS:
            known = [*POOLINGS, OWN_HEAD]
            raise ConfigError(f"unknown pooling {self.pooling!r}; {nearest(self.pooling, known)}")
        for name in ("epochs", "batch_size", "max_length", "max_train_examples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")

    @property
    def shared_head(self) -> str | None:
        """The pooling under the head that all encoders share; None: the model's own head."""
        return None if self.pooling == OWN_HEAD else self.pooling
