"""The quick ways to read an entry accept what the slow ones accept, and nothing else."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import predictions as module
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.predictions import parse_predictions

TASK = TASKS["rte"]
TABLE = b"index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n"


def read(text, task=TASK):
    try:
        return parse_predictions(gzip.compress(text), "place", task, "dev").tolist()
    except Rejected as error:
        return error.reason


@given(
    st.integers(0, len(TABLE) - 1),
    st.integers(0, 4),
    st.sampled_from(
        [b"", b"\t", b"\n", b"0", b"\x80", b"\x81", b"_", b"\t\x80\n", b"1\tentailment\n"]
    ),
)  # fmt: skip
def test_a_changed_table_is_read_as_line_by_line(start, length, new):
    text = TABLE[:start] + new + TABLE[start + length :]
    quick = read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_classes", lambda *args: None)
        assert read(text) == quick


def test_the_first_fault_of_a_table_is_named():
    assert read(TABLE) == [0, 1, 0]
    assert read(TABLE.replace(b"1\tnot", b"1 not")).endswith("not index<TAB>prediction")
    assert read(TABLE.replace(b"1\t", b"3\t")).endswith("not 0, 1, 2, … in this order")
    assert "'entailed' is not a label of rte" in read(
        TABLE.replace(b"0\tentailment", b"0\tentailed")
    )
    scores = b"index\tprediction\n0\t1.5\n1\tnan\n"
    assert "'nan' is not a number" in read(scores, TASKS["stsb"])
    assert read(scores.replace(b"nan", b"-2e-1"), TASKS["stsb"]) == [1.5, -0.2]
    assert read(b"index\tprediction\n0\t1\t2\n1\n").endswith("not index<TAB>prediction")


def test_a_table_of_the_most_rows_is_read_whole():
    task = TASKS["mnli"]
    classes = np.arange(task.split("dev").num_rows) % 3
    rows = (f"{n}\t{task.label_names[c]}\n" for n, c in enumerate(classes))
    assert read(b"index\tprediction\n" + "".join(rows).encode(), task) == classes.tolist()
