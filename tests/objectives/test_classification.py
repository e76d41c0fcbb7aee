"""The operations of fine-tuning."""

import torch
from torch import nn

from smallbench.batch import Batch
from smallbench.objectives.classification import Classification


def test_flops_are_six_for_each_multiplied_weight_and_token():
    """Matrices and convolutions count; embeddings, biases and norms do not."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Conv1d(4, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2))
    batch = Batch(input_ids=torch.zeros(5, 7, dtype=torch.long))
    counted = Classification(model, is_regression=False).train_flops(batch)
    assert counted == 6 * (4 * 4 * 3 + 4 * 2) * 5 * 7
