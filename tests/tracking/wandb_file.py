"""Reads what W&B's client wrote to a `.wandb` file: protobuf records in LevelDB's log format."""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32_768
FULL, LAST = 1, 4


def read_wandb(directory: Path) -> list:
    """The records of a run's directory; one that a kill cut is left out."""
    (path,) = directory.glob("*.wandb")
    content, records, part = path.read_bytes(), [], b""
    assert content[:4] == b":W&B"
    position = HEADER
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:  # too little of a block for a header: padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        position += HEADER + length
        part += content[position - length : position]
        if kind in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def items(record) -> dict:
    """Keys and values of a history, summary or configuration record."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record}


def of_kind(records: list, kind: str) -> list:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def rows(records: list) -> list[dict]:
    """What was logged, without W&B's own keys."""
    found = [items(history.item) for history in of_kind(records, "history")]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in found]


def summary(records: list) -> dict:
    merged: dict = {}
    for part in of_kind(records, "summary"):
        merged |= items(part.update)
    return merged
