"""The model card: what was trained, on what, for how long, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallbench.export.convert import target_of
from smallbench.train.config import PretrainConfig

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: fill-mask
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
| trained | {steps:,} steps, {tokens:,} tokens, {hours:.2f} hours |
| precision, device | {precision}, {device} |
| held-out loss | {held_out} |
| configuration digest | `{digest}` |
| code | smallbench {version}, commit {commit} |

## Loading

```python
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(PATH)
model = AutoModelForMaskedLM.from_pretrained(PATH)
```

The weights are in transformers' `{prefix}*` classes. {why}

The configuration asks for dropout {dropout}, meant for fine-tuning; pretraining used {pretraining}.
"""

WHY_ELECTRA = (
    "transformers' `Bert*` classes know no factorised embedding (here {embedding} → {hidden}); its "
    "`Electra*` classes compute the same network with one. The training objective was masked-"
    "language modelling, not ELECTRA's."
)
WHY_BERT = (
    "The embedding is as wide as the hidden layers, which is what its `Bert*` classes compute."
)


def model_card(
    run: Mapping[str, Any],
    config: PretrainConfig,
    manifest: Mapping[str, Any],
    held_out: Mapping[str, Any] | None,
) -> str:
    """Markdown with the front matter that the hub reads."""
    target = target_of(config.model)
    model, progress = config.model, manifest["progress"]
    attempt = run["attempts"][manifest["attempt"] - 1]  # the one that saved these weights
    source = run["corpus"]["source"]
    if "/" in source and not source.startswith("hub:"):
        source = Path(source).name  # where it lay on that machine is nobody's business
    why = WHY_BERT if target.model_type == "bert" else WHY_ELECTRA
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
        precision=manifest["precision"],
        device=attempt["device"],
        held_out=(
            f"{held_out['loss']:.3f} nats (unigram entropy {held_out['unigram_entropy']:.3f})"
            if held_out
            else "not evaluated"
        ),
        digest=run["config_digest"][:16],
        version=attempt["smallbench"],
        commit=attempt["git_commit"] or "unknown",
        prefix=target.class_prefix,
        why=why.format(embedding=model.embedding_size, hidden=model.hidden_size),
        dropout=target.config["hidden_dropout_prob"],
        pretraining=model.hidden_dropout_prob,
    )
