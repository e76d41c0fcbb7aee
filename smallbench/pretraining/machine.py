"""The hardware of a run: device, precision, engine, processes, and how many rows fit."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from smallbench.errors import ConfigError
from smallbench.planning.planner import choose, smaller
from smallbench.pretraining.run_data import second_phase_rows
from smallbench.stop import NEVER, Stop
from smallbench.train.config import PhaseConfig, PretrainConfig
from smallbench.train.engine import EngineChoice
from smallbench.train.memory import memory_bytes_of
from smallbench.train.precision import choose_device, choose_precision, require_compiler
from smallbench.train.processes import ALONE, Processes, join_processes, local_device


@dataclass(frozen=True)
class Machine:
    """The resolved choices of a run's hardware."""

    device: torch.device
    precision: str
    engine: EngineChoice
    fitting_rows: int
    """Rows of a micro-batch that fit, according to the plan."""
    processes: Processes = ALONE

    def facts(self) -> dict[str, Any]:
        """Return what the run's record keeps of each attempt."""
        is_gpu = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if is_gpu else platform.machine(),
            "num_devices": self.processes.size,
            "precision": self.precision,
            "engine": asdict(self.engine),
            "num_threads": torch.get_num_threads(),
        }


def choose_machine(config: PretrainConfig, stop: Stop = NEVER) -> Machine:
    """Choose what `config` leaves open, and join the other processes of the run."""
    device = local_device(choose_device(config.train.device))
    precision = choose_precision(config.train.precision, device)
    if config.train.half_residual and precision == "fp32":
        raise ConfigError(
            "train.half_residual needs precision bf16 or fp16, but this run computes in fp32; set "
            "--train.precision=bf16, or leave it out"
        )
    if config.train.compile:
        require_compiler(device)
    memory_bytes, fitting_rows = memory_bytes_of(device), config.train.rows_per_forward
    for phase in phases_of(config):
        decision = choose(
            phase, device_type=device.type, precision=precision, memory_bytes=memory_bytes
        )
        # A longer row has more tokens, so fewer rows may fit in the later phase.
        if decision.num_rows < phase.train.rows_per_forward:
            rows = decision.num_rows * phase.sequence_length // config.sequence_length
            fitting_rows = min(fitting_rows, max(1, rows))
    engine = decision.engine  # of the last phase, whose rows are the longest
    processes = join_processes(device, needs_group=engine.engine == "deepspeed", stop=stop)
    return Machine(device, precision, engine, fitting_rows, processes)


def phases_of(config: PretrainConfig) -> list[PretrainConfig]:
    """Return the configuration of each phase as if it were the whole run."""
    length = config.then.sequence_length
    if length is None:
        return [config]
    rows = second_phase_rows(config, config.train.rows_per_forward)
    whole = second_phase_rows(config, config.train.global_batch_size, multiple=rows)
    train = replace(config.train, global_batch_size=whole, micro_batch_size=rows)
    schedule = replace(config.schedule, initial_batch_size=None)
    later = replace(
        config, sequence_length=length, then=PhaseConfig(), train=train, schedule=schedule
    )
    return [config, later]


def asked_rows(config: PretrainConfig, processes: Processes) -> int:
    """Return the rows of a micro-batch that the configuration asks for."""
    return config.train.micro_batch_size or config.train.global_batch_size // processes.size


def choose_num_rows(
    config: PretrainConfig, machine: Machine, found: Mapping[str, Any] | None = None
) -> int:
    """Return the rows of a micro-batch: the configured number, or as many of them as fit.

    `found` is the result of an earlier attempt. Raises `ConfigError` if the processes cannot share
    a global batch evenly.
    """
    size, asked = machine.processes.size, asked_rows(config, machine.processes)
    for batch_size in (config.train.global_batch_size, config.schedule.initial_batch_size):
        if batch_size is not None and (not asked or batch_size % (asked * size)):
            raise ConfigError(
                f"a batch of {batch_size} sequences cannot be shared by {size} processes that take "
                f"{asked} at a time; set --train.micro_batch_size so that it can"
            )
    if found and found.get("asked") == asked:
        return int(found["size"])
    rows = asked
    while rows > machine.fitting_rows:
        rows = smaller(rows) or 1  # a divisor: the global batch is still shared evenly
    return rows
