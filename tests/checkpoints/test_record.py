"""A record is validated before it is used."""

import json

import pytest

from smallbench.checkpoints.manifest import OtherVersionError
from smallbench.checkpoints.record import parse_record, read_record
from smallbench.errors import DataError
from smallbench.report.runs import read_recorded_run as read_for_report

WHOLE = {
    "schema_version": 1,
    "run_id": "abcd1234",
    "config": {},
    "data": "corpus",
    "corpus": {"shards": "0"},
    "plugins": [],
    "attempts": [{"number": 1}],
}


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, [5]])
@pytest.mark.parametrize("key", ["run_id", "config", "data", "corpus", "plugins", "attempts"])
def test_a_part_of_another_kind_is_named(key, value, tmp_path):
    record = {**WHOLE, key: value}
    if type(value) is type(WHOLE[key]) and value != [5]:
        assert parse_record(json.dumps(record).encode(), "r") == record
        return
    with pytest.raises(DataError, match=rf"run.json is not the record of a run: .*'?{key}'?"):
        parse_record(json.dumps(record).encode(), "run.json")
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="is not the record of a run"):
        read_record(tmp_path / "run.json")
    with pytest.raises(DataError, match="is not the record of a run"):
        read_for_report(str(tmp_path))


def test_an_attempt_without_a_number_is_refused():
    with pytest.raises(DataError, match="integer 'number'"):
        parse_record(json.dumps({**WHOLE, "attempts": [{"number": "1"}]}).encode(), "run.json")


def test_a_record_of_another_release_is_read_by_nobody(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 9}))
    (tmp_path / "metrics.jsonl").write_text("")
    for read, place in ((read_record, tmp_path / "run.json"), (read_for_report, str(tmp_path))):
        with pytest.raises(OtherVersionError, match="schema_version 9; this release reads 1"):
            read(place)
