"""Work cut into parts for several machines: which of them this process does."""

from __future__ import annotations

import os
from dataclasses import dataclass

from smallbench.config import option
from smallbench.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """The part of the work that this process does."""

    shard: str | None = option(
        None, help="part of the work to do: 3/8 for the third of eight; none: all"
    )
    num_shards: int | None = option(
        None, help="number of parts; an Indexed Job's JOB_COMPLETION_INDEX (from 0) says which one"
    )

    def part(self) -> tuple[int, int]:
        """Which part, from 1, and of how many; raises `UsageError` if that is not clear."""
        number, count = "1", "1"
        if self.shard is not None and self.num_shards is not None:
            raise UsageError("--shard and --num_shards contradict each other; give one of them")
        if self.shard is not None:
            number, _, count = self.shard.partition("/")
        elif self.num_shards is not None:
            index = os.environ.get("JOB_COMPLETION_INDEX", "")
            if not index.isdecimal():
                raise UsageError(
                    f"--num_shards goes with JOB_COMPLETION_INDEX, which is {index!r}; an Indexed "
                    "Job sets it, elsewhere give --shard=K/N"
                )
            number, count = str(int(index) + 1), str(self.num_shards)
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            given = self.shard or f"{number}/{count}"
            raise UsageError(f"Invalid --shard={given}: expected K/N with 1 <= K <= N")
        return int(number), int(count)
