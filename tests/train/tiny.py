"""A BERT of a few thousand weights on random rows, for tests of the trainer's laws."""

import numpy as np
import torch

from smallbench.models.config import BertConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.objectives.masked_lm import MaskedLM
from smallbench.objectives.masking import Vocabulary
from smallbench.train.batch_sources import CorruptedRows
from smallbench.train.budget import Budget
from smallbench.train.config import AdamWConfig
from smallbench.train.engine import TorchEngine
from smallbench.train.schedule import linear_decay
from smallbench.train.trainer import Callback, Progress, Trainer

VOCABULARY = Vocabulary(
    size=90, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)
NUM_ROWS, LENGTH = 64, 16


def rows() -> np.ndarray:
    """Rows in which each token is followed by its successor more often than not; some are short."""
    generator = np.random.default_rng(0)
    start_B1 = generator.integers(5, 90, size=(NUM_ROWS, 1))
    ids_BL = 5 + (start_B1 + np.arange(LENGTH)) % 85
    ids_BL[:, 0], ids_BL[:, -1] = 2, 3
    for row in range(0, NUM_ROWS, 5):  # uneven masks
        ids_BL[row, 4 + row % 7], ids_BL[row, 5 + row % 7 :] = 3, 0
    return ids_BL


def take(start: int, count: int) -> np.ndarray:
    """Rows of the endless stream."""
    return rows()[np.arange(start, start + count) % NUM_ROWS]


def objective(*, dropout: float = 0.0, seed: int = 0) -> MaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY.size,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return MaskedLM(MaskedLMConfig(), config, VOCABULARY)


def trainer(
    *,
    num_steps: int = 20,
    micro_batch_size: int = 8,
    precision: str = "fp32",
    dropout: float = 0.0,
    progress: Progress | None = None,
    **arguments,
) -> Trainer:
    model = objective(dropout=dropout)
    engine = TorchEngine(
        model, AdamWConfig(learning_rate=1e-2), device=torch.device("cpu"), precision=precision
    )
    source = CorruptedRows(
        take, model.corrupt,
        batch_size=lambda fraction: 8, micro_batch_size=micro_batch_size, seed=3,
    )  # fmt: skip
    return Trainer(
        objective=model,
        engine=engine,
        batches=source,
        learning_rate=lambda progress: 1e-2 * linear_decay(progress.step, total=20, warmup=2),
        budget=Budget(max_steps=num_steps),
        progress=progress,
        **arguments,
    )


class Losses(Callback):
    """A callback that keeps each step's loss and gradient norm."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def after_step(self, progress, result) -> None:
        self.losses.append(result.loss.item())
        self.grad_norms.append(result.grad_norm)
