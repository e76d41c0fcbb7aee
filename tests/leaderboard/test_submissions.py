"""The folder `submissions/`: all of it is accepted, and the paper's rows are the package's."""

import json
from pathlib import Path

import pytest

from smallbench.leaderboard.board import board_rows
from smallbench.leaderboard.entry import ENTRY_FILE, entry_from_dict, entry_to_dict
from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.gold import NO_GOLD

ROOT = Path(__file__).parents[2]
SUBMISSIONS = ROOT / "submissions"
REPORTED = json.loads((ROOT / "smallbench" / "leaderboard" / "reported.json").read_text())


@pytest.mark.parametrize("row", REPORTED, ids=lambda row: row["name"])
def test_a_row_of_the_paper_is_there_as_the_package_has_it(row):
    folder = SUBMISSIONS / f"reported-{row['name'].lower()}"
    content = json.loads((folder / ENTRY_FILE).read_text())
    entry = entry_from_dict(content)
    assert entry_to_dict(entry) == content
    assert (entry.name, list(entry.notes)) == (row["name"], row["notes"])
    model, reported = entry.model, entry.reported
    assert (model.architecture, model.objective) == (row["architecture"], row["objective"])
    assert model.num_parameters == round(row["params_millions"] * 1e6)
    assert (reported.scores, reported.average) == (row["scores"], row["average"])


def test_every_entry_is_accepted_and_the_papers_are_unranked_in_its_view_only():
    evaluations = evaluate_all(SUBMISSIONS, NO_GOLD)
    assert [e.folder.name for e in evaluations if e.rejected] == []
    rows = board_rows(evaluations, "paper")
    reported = [row for row in rows if row.evaluation.tier == "reported"]
    assert [row.entry.name for row in reported] == [
        "BERT-Base", "ELECTRA-DeBERTa", "ELECTRA", "DeBERTa", "BERT", "RoBERTa"
    ]  # fmt: skip
    assert all(row.rank is None for row in reported)
    assert not [row for row in board_rows(evaluations, "robust") if row.view is None]


def test_the_cells_that_no_count_gives_are_flagged():
    found = {
        (e.folder.name.removeprefix("reported-"), finding.reason.split()[0])
        for e in evaluate_all(SUBMISSIONS, NO_GOLD)
        for finding in e.findings
        if (finding.check, finding.verdict) == ("reported", "flagged")
    }
    # The three that are known to be no accuracies, and the median that is ELECTRA's.
    assert found == {
        ("electra-deberta", "mrpc"), ("electra-deberta", "rte"), ("deberta", "mrpc"),
        ("electra", "mrpc"),
    }  # fmt: skip
