"""`run.json` as it is read: whole and of the expected kinds before anything believes it.

Free of torch, since reports and the leaderboard read it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallbench.errors import DataError
from smallbench.files import parse_json, read_json

RECORD_NAME = "run.json"

Record = dict[str, Any]

_KINDS: dict[str, type] = {"run_id": str, "config": dict, "data": str, "attempts": list}
_OPTIONAL: dict[str, type] = {"corpus": dict, "plugins": list, "summary": dict}
_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", list: "a list"}


def read_record(path: Path) -> Record:
    """Return the record in a file; raise `DataError` if it is something else."""
    return check_record(read_json(path), str(path))


def parse_record(content: bytes, name: str) -> Record:
    """Return the record in `content`; raise `DataError` about `name` if it is something else."""
    return check_record(parse_json(content, name), name)


def check_record(record: Record, name: str) -> Record:
    """Return `record`; raise `DataError` if a part is missing or of another kind."""
    for key, kind in (_KINDS | _OPTIONAL).items():
        if key in _OPTIONAL and key not in record:
            continue
        if not isinstance(record.get(key), kind):
            raise DataError(
                f"{name} is not the record of a run: expected {_JSON_NAMES[kind]} in {key!r}; "
                "bring the file back from a copy or the storage, or choose another --run_dir"
            )
    for key in ("attempts", "plugins"):
        if not all(isinstance(item, dict) for item in record.get(key, ())):
            raise DataError(f"{name} is not the record of a run: expected objects in {key!r}")
    if not all(type(attempt.get("number")) is int for attempt in record["attempts"]):
        raise DataError(f"{name} is not the record of a run: an attempt has no whole 'number'")
    return record
