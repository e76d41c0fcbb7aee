"""Event files hold the metrics file: read back number for number."""

import struct

import pytest

pytest.importorskip("tensorboardX")

from smallbench.errors import ConfigError
from smallbench.report.runs import read_recorded_runs
from smallbench.report.tensorboard import write_events
from tests.report.runs import records, write_run


def scalars(directory):
    """(tag, step) → value, of TFRecords: length, its checksum, an `Event`, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    (path,) = directory.glob("events.out.tfevents.*")
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        content = content[16 + length :]
    return found


def expected(rows):
    return {
        (f"{row['event']}/{key}", row["step"]): pytest.approx(value, rel=1e-6)  # they are float32
        for row in rows
        for key, value in row.items()
        if key not in {"event", "step"} and value is not None
    }


def test_every_number_is_a_scalar_at_its_step(tmp_path):
    rows = records()
    rows[3]["loss"] = None
    runs = read_recorded_runs([write_run(tmp_path / "a", rows=rows), write_run(tmp_path / "b")])
    write_events(runs, tmp_path / "tb")
    assert scalars(tmp_path / "tb" / "a") == expected(rows)
    assert scalars(tmp_path / "tb" / "b") == expected(records())


def test_writing_again_replaces_what_a_resumed_run_has_taken_back(tmp_path):
    write_events(read_recorded_runs([write_run(tmp_path / "a")]), tmp_path / "tb")
    rows = records(50)
    write_events(read_recorded_runs([write_run(tmp_path / "2" / "a", rows=rows)]), tmp_path / "tb")
    assert scalars(tmp_path / "tb" / "a") == expected(rows)


def test_a_directory_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "tb" / "a").mkdir(parents=True)
    (tmp_path / "tb" / "a" / "precious").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        write_events(read_recorded_runs([write_run(tmp_path / "a")]), tmp_path / "tb")
    assert (tmp_path / "tb" / "a" / "precious").exists()
