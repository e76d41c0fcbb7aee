"""The model card: the trained model, its data and cost, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallbench.export.code import CLASSES
from smallbench.models.convert import FINETUNING_DROPOUT, target_of
from smallbench.objectives import OBJECTIVES
from smallbench.templates import from_template
from smallbench.train.config import PretrainConfig


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
    head = str(OBJECTIVES[config.objective.objective].head)
    target = target_of(config.model, head=head)
    # The one that saved these weights.
    attempt = next(a for a in run["attempts"] if a["number"] == manifest["attempt"])
    source = run["corpus"]["source"]
    if "/" in source and not source.startswith("hub:"):
        source = Path(source).name  # the path on that machine is private
    return from_template(
        "smallbench.export",
        "card.md",
        config=config,
        model=config.model,
        head=head,
        target=target,
        corpus=run["corpus"],
        source=source,
        manifest=manifest,
        progress=manifest["progress"],
        attempt=attempt,
        used=used_sentence(manifest["progress"]),
        held_out=held_out,
        digest=run["config_digest"][:16],
        class_name=CLASSES[head][0] if target is None else target.class_name,
        trust=", trust_remote_code=True" if target is None else "",
        dropout=FINETUNING_DROPOUT,
    )
