"""`metrics.jsonl`: one JSON object a line, the truth for every number of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from smallbench.errors import DataError
from smallbench.files import write_text
from smallbench.tracking.base import MetricsRecord

RESTORE = "restore it from the run's --storage, or choose another --run_dir"
"""What to do about a damaged file of a run."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all records but a truncated last line; raise `DataError` on other damage."""
    return parse_metrics(path.read_text(), str(path)) if path.exists() else []


def parse_metrics(content: str, name: str) -> list[dict[str, Any]]:
    """Return the records in a file's content; `name` is for the error."""
    *lines, last = content.split("\n")
    # Every whole line ends in a newline, so the rest was cut by a kill.
    del last
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # without its own line number, which is 1
            raise DataError(
                f"{name}, line {number}: not a JSON object ({reason}); {RESTORE}"
            ) from None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise DataError(f"{name}, line {number}: expected a JSON object with an integer 'step'")
        records.append(record)
    return records


class MetricsFile:
    """Appends records to a file.

    A resumed run repeats the steps since its checkpoint, so later records are dropped first.
    """

    def __init__(self, path: Path, *, from_step: int | None = None) -> None:
        """`from_step` is the step of a resumed run; None starts an empty file."""
        kept: list[dict[str, Any]] = []
        if from_step is not None:
            kept = [record for record in read_metrics(path) if record["step"] <= from_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._stream = path.open("a")

    def log(self, record: MetricsRecord) -> None:
        """Append one line."""
        self._stream.write(json.dumps(dict(record)) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Flush the lines to disk, before a checkpoint that relies on them."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush to disk and close."""
        self.sync()
        self._stream.close()
