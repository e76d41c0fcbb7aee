"""Sizes of a pod for a recipe, from the planner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smallbench.config import override_all
from smallbench.data.config import PrepareConfig
from smallbench.errors import UnavailableError
from smallbench.gpus import GIB, gpu_of
from smallbench.train.config import PretrainConfig

HOST_GIB = 16
"""Beside the weights: CUDA's libraries, the corpus's pages, the tokenizer and W&B."""
CPU_HOST_GIB = 2
"""The same without CUDA."""
SHM_GIB = 2
"""`/dev/shm`'s limit, which counts to the container's memory."""
GLUE_GIB = 3
"""GLUE is under 1 GiB, and lies in the hub's cache as it came and as it was unpacked."""
SCRATCH_GIB = 2
"""Beside data and checkpoints: compiled kernels, W&B's records, logs."""
PREPARE_CORPORA = 5
"""Scratch of a pod that prepares, in corpora: raw text is two to three of them, and one is made."""

SAVE_BYTES_PER_SECOND = 100e6
UPLOAD_BYTES_PER_SECOND = 25e6
"""Both well below what was measured (250 and 113 MB/s, docs/results.md): a node is shared."""
GRACE_SECONDS = 300
"""At least: a node's disk and a bucket may be slow just when a whole cluster is drained."""

STATE_BYTES = 12
"""Of a parameter in a checkpoint: float32 weight and Adam's two moments."""
DAY_SECONDS = 86_400
SLACK = 2.0
"""A deadline is this many times the planned hours at their slow end, and a day for queues and
restarts: a deadline that ends a healthy run costs more than one that is late."""


@dataclass(frozen=True)
class PodSizes:
    """Of one pod; `hours` of its part of the work."""

    memory_gib: int
    scratch_gib: int
    save_seconds: float
    """Of a save and an upload."""
    hours: float | None
    """None: not planned."""

    @property
    def grace_seconds(self) -> int:
        """Twice what a save and an upload take, at least five minutes."""
        return max(GRACE_SECONDS, math.ceil(2 * self.save_seconds))


def deadline_seconds(hours: float) -> int:
    """Return when a Job whose pods compute so long, one after the other, may be ended."""
    return DAY_SECONDS * math.ceil(1 + SLACK * hours / 24)


def sizes_for(
    config: PretrainConfig, gpu: str, *, data_gib: float, hours: float | None
) -> PodSizes:
    """Ask the planner for the pod of a run; `hours` overrides the plan's.

    Raises `UnavailableError` if nothing fits the card.
    """
    from smallbench.planning.gpu_plan import make_plan
    from smallbench.planning.planner import Planner, choices_of

    if config.model.vocab_size is None:  # the tokenizer's; the one that is trained by default
        config = override_all(config, {"model.vocab_size": PrepareConfig.vocab_size})
    train = config.train
    if gpu == "none":
        planner = Planner(config, device_type="cpu", precision="fp32")
        num_parameters, num_steps = planner.num_parameters, planner.num_steps()
        host = planner.memory(choices_of(config)[0], train.rows_per_forward).peak
    else:
        plan = make_plan(config, gpu_of(gpu), compares=False)
        if plan.chosen is None:
            raise UnavailableError(f"{config.recipe} on {gpu}: {plan.reason}; choose another --gpu")
        assert plan.whole is not None
        num_parameters, num_steps = plan.num_parameters, plan.whole.steps
        hours = max(plan.whole.hours) if hours is None else hours
        # CPU Adam's copies, should a run be continued where it must offload: 4 numbers a parameter.
        host = max(plan.chosen.host + plan.chosen.save, 16 * num_parameters)
    regular = 0 if train.keep_every_steps is None else num_steps // train.keep_every_steps
    # One more is being written, one more may wait for its upload.
    kept = 2 + train.keep_last + len(train.milestones) + regular
    checkpoint = STATE_BYTES * num_parameters
    others_gib = SHM_GIB + (CPU_HOST_GIB if gpu == "none" else HOST_GIB)
    return PodSizes(
        memory_gib=math.ceil(host / GIB + others_gib),
        scratch_gib=math.ceil(data_gib + kept * checkpoint / GIB + SCRATCH_GIB),
        save_seconds=checkpoint / SAVE_BYTES_PER_SECOND + checkpoint / UPLOAD_BYTES_PER_SECOND,
        hours=hours,
    )


def largest(sizes: Sequence[PodSizes]) -> PodSizes:
    """Return a pod with room for each of `sizes`."""
    return PodSizes(
        max(each.memory_gib for each in sizes),
        max(each.scratch_gib for each in sizes),
        max(each.save_seconds for each in sizes),
        max((each.hours for each in sizes if each.hours is not None), default=None),
    )


def pull_seconds(corpus_gib: float) -> float:
    """Return how long a pod may pull its corpus: twice what a slow store takes."""
    return 2 * corpus_gib * GIB / UPLOAD_BYTES_PER_SECOND


def prepare_gib(corpus_gib: float) -> int:
    """Return the scratch of a pod that prepares; the first one joins all shares."""
    return max(SCRATCH_GIB, math.ceil(PREPARE_CORPORA * corpus_gib))
