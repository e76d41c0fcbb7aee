"""A record is validated before it is used."""

import json

import pytest

from smallbench.checkpoints.record import check_record, parse_record, read_record
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
        assert check_record(record, "r") == record
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
        check_record({**WHOLE, "attempts": [{"number": "1"}]}, "run.json")
