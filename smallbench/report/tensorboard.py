"""Runs as event files, which TensorBoard and everything that reads its files can show.

A conversion, not a second tracker: `metrics.jsonl` is the truth, and a resumed run takes records
back, which event files cannot. Writing them anew takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from smallbench.errors import ConfigError
from smallbench.files import write_text
from smallbench.report.runs import RecordedRun

MARKER = "smallbench-report"
"""In each run's directory, to tell it from one that somebody else made."""


def write_events(runs: Sequence[RecordedRun], out: Path) -> None:
    """A directory of event files for each run below `out`; earlier ones of this kind are replaced.

    Every finite number of a record is a scalar `train/…` or `eval/…` at the record's step. Wall
    time is the seconds of training since the first attempt began, which leaves pauses out. Raises
    `ConfigError` where a run's directory holds anything else.
    """
    from tensorboardX import SummaryWriter

    for run in runs:
        directory = out / run.name.strip("/").replace("/", "_")
        if directory.exists() and not (directory / MARKER).is_file():
            raise ConfigError(f"{directory} holds something else; choose another --tensorboard")
        shutil.rmtree(directory, ignore_errors=True)
        write_text(directory / MARKER, "")
        started = run.record["attempts"][0]["started_unix_seconds"]
        with SummaryWriter(str(directory)) as writer:
            for record in run.records:
                for key, value in record.items():
                    if isinstance(value, int | float) and key != "step":
                        writer.add_scalar(
                            f"{record['event']}/{key}",
                            value,
                            record["step"],
                            walltime=started + record["train_seconds"],
                        )
