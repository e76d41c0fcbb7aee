"""Recipes that fill a 16 GB card: what `smallbench plan` says of it is in their numbers."""

from __future__ import annotations

from typing import Any

from smallbench.models.config import BertConfig, DebertaConfig, EncoderConfig
from smallbench.objectives.config import MaskedLMConfig
from smallbench.recipes.base import encoder, recipe
from smallbench.train.config import AdamWConfig, LinearSchedule, PretrainConfig, TrainConfig


def large_recipe(
    name: str,
    model: EncoderConfig,
    *,
    learning_rate: float,
    two_segment_fraction: float = 0.5,
    **train: Any,
) -> PretrainConfig:
    """Return a recipe of masked-language modelling with BERT's AdamW."""
    return PretrainConfig(
        recipe=name,
        sequence_length=128,  # Devlin et al. 2019, appendix A.2: 90 % of the steps
        model=model,
        objective=MaskedLMConfig(mask_fraction=0.15, two_segment_fraction=two_segment_fraction),
        optim=AdamWConfig(
            learning_rate=learning_rate,
            beta2=0.999,  # appendix A.2, as the next
            weight_decay=0.01,
            epsilon=1e-6,  # google-research/bert optimization.py, as the next
            clip_norm=1.0,
        ),
        schedule=LinearSchedule(warmup_fraction=0.01),  # appendix A.2: 10,000 of 1M steps
        train=TrainConfig(**train),
    )


BERT_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,  # appendix A.2
    "max_steps": 1_000_000,
    "global_batch_size": 256,
}
DEBERTA_TRAINING: dict[str, Any] = {
    "learning_rate": 1.5e-4,  # He et al. 2021, appendix A, the 1.5B model's
    "max_steps": 10_000,
    "global_batch_size": 2_048,
    "checkpoint_activations": True,
}


@recipe(
    parameters="109.5M parameters",
    source="BERT-Base (Devlin et al. 2019, arXiv 1810.04805)",
    budget="1M steps of 256 x 128 tokens (32.8B tokens); 4.5 to 8.2 days of a V100, "
    "planned, not measured",
    expected="not measured; its paper reports a GLUE test average of 79.6 with WNLI left out",
)
def bert_base() -> PretrainConfig:
    """BERT-Base in its first nine tenths: rows of 128 tokens.

    Prepare its corpus as for bert-small. Differences from its paper: no next-sentence prediction;
    no last tenth of the steps with rows of 512; Adam's bias correction is on; segments are cut
    anywhere in the middle half of a row.
    """
    model = encoder(
        BertConfig,
        embedding_size=768,  # §3, BERT-Base
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    return large_recipe("bert-base", model, **BERT_TRAINING, micro_batch_size=128)


@recipe(
    parameters="335.2M parameters",
    source="BERT-Large (Devlin et al. 2019, arXiv 1810.04805)",
    budget="1M steps of 256 x 128 tokens (32.8B tokens); 14 to 26 days of a V100, "
    "planned, not measured",
    expected="not measured; its paper reports a GLUE test average of 82.1 with WNLI left out",
)
def bert_large() -> PretrainConfig:
    """BERT-Large, with bert-base's differences from its paper.

    Weights, gradients and Adam's states take 5 GiB of a card, 64 rows at a time 8 more.
    """
    model = encoder(
        BertConfig,
        embedding_size=1024,  # §3, BERT-Large
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
    )
    return large_recipe("bert-large", model, **BERT_TRAINING, micro_batch_size=64)


@recipe(
    parameters="758.9M parameters",
    source="DeBERTa-XLarge (He et al. 2021, arXiv 2006.03654; microsoft/deberta-xlarge)",
    budget="10,000 steps of 2,048 x 128 tokens (2.6B tokens); 3.6 to 6.6 days of a V100, "
    "planned, not measured",
    expected="not measured",
)
def deberta_xlarge() -> PretrainConfig:
    """The shape of microsoft/deberta-xlarge on a hundredth of its budget.

    Prepare its corpus with `--tokenizer=bpe --vocab_size=50265`. Batch and optimizer are the
    paper's of its largest model; the number of steps is ours. Weights, gradients and Adam's states
    take 11.3 GiB of a card; activations are recomputed for what they leave.
    Differences as in deberta-small: no enhanced mask decoder, rows of 128 tokens (the paper's have
    512).
    """
    model = encoder(
        DebertaConfig,
        vocab_size=50_265,  # GPT-2's BPE with five special tokens
        embedding_size=1024,
        hidden_size=1024,
        num_hidden_layers=48,
        num_attention_heads=16,
        max_relative_positions=512,
    )
    return large_recipe(
        "deberta-xlarge", model, two_segment_fraction=0.0, **DEBERTA_TRAINING, micro_batch_size=32
    )


@recipe(
    parameters="1527.8M parameters",
    source="this project; the shape is GPT-2 XL's (Radford et al. 2019): 48 layers of 1,600",
    budget="10,000 steps of 2,048 x 128 tokens (2.6B tokens); 6.5 to 12.3 days of a V100, "
    "planned, not measured",
    expected="not measured; it is here to show what fits",
)
def bert_1_5b() -> PretrainConfig:
    """A BERT of 1.5 billion parameters, which one 16 GB card trains with ZeRO-Offload alone.

    Adam's states, the float32 weights and their gradients lie in the host's memory (28 GiB and
    more). Its layers are post-norm like all BERTs here; Megatron-LM (Shoeybi et al. 2019, §5.3)
    found that a BERT larger than BERT-Large trains worse that way, so expect no record of it.
    """
    model = encoder(
        BertConfig,
        embedding_size=1600,
        hidden_size=1600,
        num_hidden_layers=48,
        num_attention_heads=25,
    )
    return large_recipe("bert-1.5b", model, **DEBERTA_TRAINING, micro_batch_size=256)
