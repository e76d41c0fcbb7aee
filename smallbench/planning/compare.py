"""On start, what was planned; after the first interval, what is measured beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from smallbench.gpus import GIB, gpu_of_device
from smallbench.planning.planner import Planner
from smallbench.train.budget import Progress
from smallbench.train.config import PretrainConfig
from smallbench.train.engine import EngineChoice
from smallbench.train.memory import PeakMeter
from smallbench.train.trainer import Callback, StepResult


class ComparePlan(Callback):
    """A callback that says one line, after `every_steps` steps of this attempt."""

    def __init__(
        self,
        config: PretrainConfig,
        engine: EngineChoice,
        meter: PeakMeter,
        *,
        device: torch.device,
        precision: str,
        num_rows: int,
        every_steps: int,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ) -> None:
        """Plans now; `num_rows` are those of a micro-batch."""
        planner = Planner(config, device_type=device.type, precision=precision)
        way = (engine, config.train.checkpoint_activations)
        memory = planner.memory(way, num_rows)
        # Offloaded bytes count if the device is the host.
        peak = memory.peak + (memory.host if meter.is_host else 0)
        self._planned = f"{peak / GIB:.2f} GiB"
        gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        if gpu is not None:
            fast, slow = planner.time(way, num_rows, gpu).seconds
            low, high = config.tokens_per_step / slow, config.tokens_per_step / fast
            self._planned += f", {low:,.0f} to {high:,.0f} tokens/s"
        self._way = f"{memory.label}, {num_rows} rows at a time"
        self._meter, self._say, self._every_steps = meter, say, every_steps

    def on_start(self, progress: Progress) -> None:
        """Print the plan."""
        self._due = progress.step + self._every_steps
        self._mark = progress.num_tokens, progress.train_seconds
        self._say(f"planned: {self._way}, {self._planned}")

    def after_step(self, progress: Progress, result: StepResult) -> None:
        """Print the plan beside what was measured, once."""
        if progress.step != self._due:
            return
        tokens, seconds = self._mark
        rate = (progress.num_tokens - tokens) / (progress.train_seconds - seconds)
        measured = f"{self._meter.peak_bytes() / GIB:.2f} GiB, {rate:,.0f} tokens/s"
        self._say(f"planned {self._planned}; measured {measured}")
