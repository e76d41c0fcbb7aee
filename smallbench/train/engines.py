"""The choice of an engine, and its construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from smallbench.objectives.base import Objective
from smallbench.train.config import AdamWConfig, OptimizerConfig, TrainConfig
from smallbench.train.engine import Engine, TorchEngine
from smallbench.train.processes import Processes


@dataclass(frozen=True)
class EngineChoice:
    """An engine with its options resolved."""

    engine: Literal["torch", "deepspeed"] = "torch"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    zero_stage: int | None = None


def choose_engine(train: TrainConfig) -> EngineChoice:
    """Return the engine of a configuration; `auto` offloads nothing."""
    offload = "none" if train.offload == "auto" else train.offload
    engine = train.engine
    if engine == "auto":
        engine = "torch" if offload == "none" and train.zero_stage is None else "deepspeed"
    return EngineChoice(engine, offload, train.zero_stage if engine == "deepspeed" else None)


def build_engine(
    choice: EngineChoice,
    objective: Objective,
    optim: OptimizerConfig,
    *,
    device: torch.device,
    precision: str,
    processes: Processes,
    micro_batch_size: int,
) -> Engine:
    """Return the engine for `objective`, which it may change in place."""
    if choice.engine == "torch":
        return TorchEngine(
            objective, optim, device=device, precision=precision, processes=processes
        )
    from smallbench.train.deepspeed_engine import DeepSpeedEngine

    assert isinstance(optim, AdamWConfig), "the configuration refuses others"
    return DeepSpeedEngine(
        objective,
        optim,
        device=device,
        precision=precision,
        processes=processes,
        offload=choice.offload,
        zero_stage=choice.zero_stage,
        micro_batch_size=micro_batch_size,
    )
