"""The model card: the trained model, its data and cost, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallbench.export.code import CLASSES
from smallbench.models.convert import FINETUNING_DROPOUT, target_of
from smallbench.objectives import OBJECTIVES
from smallbench.train.config import PretrainConfig

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- smallbench
- {architecture}
---

# {recipe}

A small language encoder, pretrained from scratch with
[Small-Bench NLP](https://arxiv.org/abs/2109.10847) on one device.

| | |
|---|---|
| recipe | `{recipe}` |
| objective | {objective} |
| data | `{source}`: {rows:,} rows of {length} tokens, shards `{shards}` |
| trained | {steps:,} steps, {tokens:,} tokens, {hours:.2f} hours in steps |
| used | {used} |
| precision, device | {precision}, {device} |
| held-out loss | {held_out} |
| configuration digest | `{digest}` |
| code | smallbench {version}, commit {commit} |

## Loading

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, {class_name}

tokenizer = AutoTokenizer.from_pretrained(PATH)
model = {class_name}.from_pretrained(PATH{trust})  # as it was pretrained
classifier = AutoModelForSequenceClassification.from_pretrained(PATH, num_labels=2{trust})
```

{why}

The configuration asks for dropout {dropout}, meant for fine-tuning; pretraining used {pretraining}.
"""

FACTORISED = (
    "transformers' `Bert*` classes know no factorised embedding (here {embedding} → {hidden}); its "
    "`Electra*` classes compute the same network with one. The training objective was masked-"
    "language modelling, not ELECTRA's."
)
PLAIN = "The embedding is as wide as the hidden layers, as in its `Bert*` classes."
DISCRIMINATOR = (
    "This is the discriminator of replaced-token detection; the generator is not part of it."
)
BARE = (
    f"{DISCRIMINATOR} Neither is its detection head, for which transformers has no DeBERTa class."
)

OWN_CODE = (
    "transformers has no class for the architecture `{architecture}`: its code is in the same "
    "folder as the weights, and `trust_remote_code` runs it. Review it first."
)


def _why(config: PretrainConfig) -> str:
    target = target_of(config.model, head=_head(config))
    if target is None:
        return OWN_CODE.format(architecture=config.model.architecture)
    if _head(config) == "replaced":
        return BARE if target.left_behind else DISCRIMINATOR
    if target.model_type == "bert":
        return PLAIN
    if target.model_type == "electra" and config.model.architecture == "bert":
        return FACTORISED.format(
            embedding=config.model.embedding_size, hidden=config.model.hidden_size
        )
    return f"The weights are in transformers' `{target.class_name}`."


def _head(config: PretrainConfig) -> str:
    return str(OBJECTIVES[config.objective.objective].head)


def held_out_sentence(held_out: Mapping[str, Any]) -> str:
    """Return the held-out losses of an evaluation, each with its baseline.

    The total of several terms is a weighted sum, which has no entropy as a baseline.
    """
    unigrams = f"unigram entropy {held_out['unigram_entropy']:.3f}"
    if "mlm_loss" in held_out:
        return f"{held_out['mlm_loss']:.3f} nats ({unigrams})"
    return (
        f"generator {held_out['generator_loss']:.3f} nats ({unigrams}), discriminator "
        f"{held_out['discriminator_loss']:.3f} nats ({held_out['discriminator_accuracy']:.1%} "
        f"right, where {1 - held_out['replaced_fraction']:.1%} of the tokens are original)"
    )


def used_sentence(progress: Mapping[str, Any]) -> str:
    """Return the resources of a run over all its attempts; unknown ones are omitted."""
    usage = progress.get("usage", {})
    parts = [f"{progress['train_flops']:.3g} floating-point operations"]
    if usage.get("gpu_active_seconds") is not None:
        parts.append(f"{usage['gpu_active_seconds'] / 3600:.2f} GPU hours")
    if usage.get("energy_kwh") is not None:
        parts.append(f"{usage['energy_kwh']:.3g} kWh (by {usage['energy_method']})")
    if usage.get("cost") is not None:
        parts.append(f"a cost of {usage['cost']:.2f}")
    return ", ".join(parts)


def model_card(
    run: Mapping[str, Any],
    config: PretrainConfig,
    manifest: Mapping[str, Any],
    held_out: Mapping[str, Any] | None,
) -> str:
    """Markdown with the front matter that the hub reads."""
    target = target_of(config.model, head=_head(config))
    model, progress = config.model, manifest["progress"]
    # The one that saved these weights.
    attempt = next(a for a in run["attempts"] if a["number"] == manifest["attempt"])
    source = run["corpus"]["source"]
    if "/" in source and not source.startswith("hub:"):
        source = Path(source).name  # the path on that machine is private
    return TEMPLATE.format(
        architecture=model.architecture,
        recipe=config.recipe,
        objective=config.objective.objective,
        source=source,
        rows=run["corpus"]["rows"],
        length=config.sequence_length,
        shards=run["corpus"]["shards"][:16],
        steps=manifest["step"],
        tokens=progress["num_tokens"],
        hours=progress["train_seconds"] / 3600,
        used=used_sentence(progress),
        precision=manifest["precision"],
        device=attempt["device"],
        held_out=held_out_sentence(held_out) if held_out else "not evaluated",
        digest=run["config_digest"][:16],
        version=attempt["smallbench"],
        commit=attempt["git_commit"] or "unknown",
        class_name=CLASSES[_head(config)][0] if target is None else target.class_name,
        trust=", trust_remote_code=True" if target is None else "",
        pipeline="fill-mask" if _head(config) == "tokens" else "feature-extraction",
        why=_why(config),
        dropout=FINETUNING_DROPOUT,
        pretraining=model.hidden_dropout_prob,
    )
