"""The loss of a model's token head at a batch's targets.

Shapes: B rows, L tokens, D hidden, E embedding size, M targets.
"""

from __future__ import annotations

from torch import Tensor

from smallbench.batch import Batch
from smallbench.models.encoder import Encoder
from smallbench.models.kernels.token_loss import TokenLoss, token_loss


def loss_of_targets(
    model: Encoder, hidden_BLD: Tensor, batch: Batch, *, vocab_size: int, guess: bool
) -> tuple[TokenLoss, Tensor]:
    """Return `token_loss` of a model's token head at the batch's targets, and their ids_M.

    Samples are drawn if the batch has uniform numbers for them.
    """
    assert batch.target_positions is not None
    assert batch.target_ids is not None
    hidden_MD = hidden_BLD.flatten(0, 1)[batch.target_positions]
    features_ME, weight_VE, bias_V = model.token_scorer(hidden_MD)
    result = token_loss(
        features_ME,
        weight_VE,
        bias_V,
        batch.target_ids,
        vocab_size=vocab_size,
        guess=guess,
        uniforms_M=batch.target_uniforms,
    )
    return result, batch.target_ids
