"""Replaced-token detection (ELECTRA, Clark et al. 2020, §3): a small generator fills the hidden
positions, the discriminator says of each token whether it is the original.

The generator learns by masked-language modelling alone. Its samples are drawn without a gradient,
from uniform numbers that belong to the batch: a step's samples are the same however it is cut into
micro-batches, on whatever device, and after a restart.

Shapes: B rows, L tokens a row, D hidden, M hidden positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbench.batch import Batch
from smallbench.models import ARCHITECTURES
from smallbench.models.config import EncoderConfig
from smallbench.models.encoder import Encoder, Head
from smallbench.objectives.base import PretrainObjective, Sums
from smallbench.objectives.config import ReplacedTokenConfig
from smallbench.objectives.masking import IntArray, Vocabulary, corrupt


class DisentangledEmbedding(nn.Module):
    """`E_D = stopgrad(E_G) + Δ` (DeBERTaV3, He et al. 2023, §3.2): Δ starts at zero.

    The discriminator uses the generator's embeddings without changing them.
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = base
        self.delta = nn.Parameter(torch.zeros_like(base.weight))

    @property
    def weight(self) -> Tensor:
        """The sum of both tables, [V, E]."""
        return self.base.weight.detach() + self.delta

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids → embeddings."""
        return F.embedding(input_ids, self.base.weight.detach()) + F.embedding(
            input_ids, self.delta
        )


class ReplacedToken(PretrainObjective):
    """The objective with both networks; `model`, the discriminator, is what is exported."""

    head: Head = "replaced"
    # The discriminator's weight of 50 gives large gradients: with PyTorch's 2¹⁶, the first five
    # steps would overflow and be skipped.
    initial_loss_scale = 2.0**11

    def __init__(self, config: ReplacedTokenConfig, model: EncoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.weights = {
            "generator": config.generator_weight,
            "discriminator": config.discriminator_weight,
        }
        build = ARCHITECTURES[model.architecture]
        self.model = build(model, head=self.head)
        self.generator: Encoder = build(model.narrowed(config.generator_width), head="tokens")
        if config.embedding_sharing == "shared":
            self.generator.embeddings.share_with(self.model.embeddings)
        elif config.embedding_sharing == "gradient_disentangled":
            self.model.embeddings.tokens = DisentangledEmbedding(self.generator.embeddings.tokens)

    def corrupt(
        self, ids_BL: IntArray, generator: np.random.Generator, fraction: float = 0.0
    ) -> Batch:
        """Corrupt clean rows to a global batch, with a uniform number for each sample."""
        return corrupt(
            ids_BL, self.config, self.vocabulary, generator, fraction=fraction, with_uniforms=True
        )

    def num_targets(self, batch: Batch) -> Mapping[str, int]:
        """Return the hidden positions for the generator, and all tokens for the discriminator."""
        return {"generator": batch.num_targets, "discriminator": batch.num_tokens}

    def forward(self, batch: Batch) -> Sums:
        """Return both losses and the correct predictions of both networks, summed."""
        (generator_loss, guesses_M, sampled_M), ids_M = self.loss_of_targets(
            self.generator, self.generator(batch), batch
        )
        assert sampled_M is not None
        replaced_batch, labels_BL = self.fill(batch, sampled_M)

        scores_BL = self.model.predict_replaced(self.model(replaced_batch)).float()
        loss_BL = F.binary_cross_entropy_with_logits(scores_BL, labels_BL, reduction="none")
        said_BL = scores_BL.detach() > 0
        right_BL, found_BL = said_BL == labels_BL.bool(), said_BL & labels_BL.bool()
        if batch.attention_mask is not None:
            loss_BL = loss_BL.masked_fill(~batch.attention_mask, 0.0)
            right_BL = right_BL & batch.attention_mask
        counts = {
            "discriminator_accuracy": ("discriminator", right_BL.sum()),
            "replaced_fraction": ("discriminator", labels_BL.sum()),
            "detected_fraction": ("discriminator", found_BL.sum()),
            "sampled_accuracy": ("generator", (sampled_M == ids_M).sum()),
        }
        if guesses_M is not None:
            right = (guesses_M == ids_M).sum()
            counts["generator_accuracy"] = ("generator", right)
        losses = {"generator": generator_loss, "discriminator": loss_BL.sum()}
        return Sums(losses=losses, counts=counts)

    def fill(self, batch: Batch, sampled_M: Tensor) -> tuple[Batch, Tensor]:
        """Return the discriminator's input, and labels_BL: 1 where a token is not the original.

        A sample that happens to be the original counts as original (§3.1).
        """
        assert batch.target_positions is not None
        assert batch.target_ids is not None
        ids = batch.input_ids.flatten().index_copy(0, batch.target_positions, sampled_M)
        labels = torch.zeros(ids.shape, device=ids.device)
        labels[batch.target_positions] = (sampled_M != batch.target_ids).float()
        shape = batch.input_ids.shape
        return replace(batch, input_ids=ids.view(shape)), labels.view(shape)

    def train_flops(self, batch: Batch) -> int:
        """Return the operations of both networks, the backward pass at twice the forward."""
        rows, length = batch.input_ids.shape
        generator = self.generator.forward_flops(
            num_rows=rows, length=length, num_targets=batch.num_targets
        )
        discriminator = self.model.forward_flops(
            num_rows=rows, length=length, num_targets=rows * length
        )
        return 3 * (generator + discriminator)
