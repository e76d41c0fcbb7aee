"""The folder `submissions/`: all of it is accepted, and the paper's rows are the package's."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from smallbench.leaderboard.board import board
from smallbench.leaderboard.entry import ENTRY_FILE, entry_to_dict
from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.gold import NO_GOLD
from smallbench.leaderboard.reported import REPORTED, reported_entry

ROOT = Path(__file__).parents[2]
SUBMISSIONS = ROOT / "submissions"


@pytest.mark.parametrize("row", REPORTED, ids=lambda row: row.name)
def test_a_row_of_the_paper_is_there_as_the_package_has_it(row):
    entry = reported_entry(row)
    content = json.loads((SUBMISSIONS / entry.slug / ENTRY_FILE).read_text())
    assert content == entry_to_dict(entry)


def test_every_entry_is_accepted_and_the_papers_are_unranked_in_its_view_only():
    evaluations = evaluate_all(SUBMISSIONS, NO_GOLD)
    assert [e.folder.name for e in evaluations if e.rejected] == []
    rows = board(evaluations, "paper")
    reported = [row for row in rows if row.evaluation.tier == "reported"]
    assert [row.entry.name for row in reported] == [
        "BERT-Base", "ELECTRA-DeBERTa", "ELECTRA", "DeBERTa", "BERT", "RoBERTa"
    ]  # fmt: skip
    assert all(row.rank is None for row in reported)
    assert not [row for row in board(evaluations, "robust") if row.view is None]


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


# ---- what a pull request changes, by the script of the workflow


class PullRequest:
    """A repository in which a request and its base grow apart, until they are merged."""

    def __init__(self, folder: Path) -> None:
        self.data, self.folder = folder / "data", folder
        self.data.mkdir()
        self.git("init", "-q", "-b", "main")
        self.commit("verified.json", "old/entry.json", "gone/entry.json")
        self.git("checkout", "-q", "-b", "request")

    def git(self, *words: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=self.data, check=True, capture_output=True)

    def commit(self, *names: str) -> None:
        for name in names:
            path = self.data / "submissions" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path.exists()}")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "more")

    def merge(self) -> None:
        self.git("checkout", "-q", "main")
        self.git("merge", "-q", "--no-ff", "-m", "merged", "request")

    def validated(self) -> tuple[list[str], int, str]:
        """Names that would be validated, the exit code, and what the runner would read."""
        workflow = yaml.safe_load((ROOT / ".github/workflows/submissions.yml").read_text())
        script = workflow["jobs"]["validate"]["steps"][-1]["run"]
        # The validating itself has its own tests and needs the labels of the hub.
        command = self.folder / "smallbench"
        command.write_text(
            f'#!/bin/sh\nprintf "%s\\0" "${{3##*/}}" >> {self.folder}/names\n'
            'echo "::error::foreign"\ntest "$3" = "${3%bad}"\n'
        )
        command.chmod(0o755)
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder, capture_output=True, text=True, check=False,
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "DATA": str(self.data),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            },
        )  # fmt: skip
        assert done.stderr == ""
        names = self.folder / "names"
        found = names.read_text().split("\0")[:-1] if names.exists() else []
        return found, done.returncode, done.stdout


def test_a_request_is_judged_by_what_it_changes_however_old_it_is(tmp_path):
    request = PullRequest(tmp_path)
    hostile = "$(touch pwned)\n::error::x"
    request.commit("new/entry.json", "new/runs.jsonl", f"{hostile}/entry.json", "notes.txt")
    request.git("rm", "-q", "-r", "submissions/gone")
    request.git("commit", "-q", "-m", "less")
    request.git("checkout", "-q", "main")
    request.commit("verified.json", "old/entry.json", "later/entry.json")
    request.merge()
    names, status, output = request.validated()
    assert (sorted(names), status) == (sorted(["new", hostile]), 0)
    assert not list(tmp_path.rglob("pwned"))
    first, *_, last = output.splitlines()
    assert first.removeprefix("::stop-commands::") == last.strip(":")
    assert "    ::error::foreign" in (tmp_path / "summary").read_text().splitlines()


@pytest.mark.parametrize(("name", "expected"), [("bad/entry.json", ["bad"]), ("verified.json", [])])
def test_a_request_that_may_not_be_merged_fails(name, expected, tmp_path):
    request = PullRequest(tmp_path)
    request.commit(name)
    request.merge()
    assert request.validated()[:2] == (expected, 65)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    request = PullRequest(tmp_path)
    request.git("mv", "submissions", "elsewhere")
    (request.data / "submissions").symlink_to("elsewhere")
    request.git("add", "-A")
    request.git("commit", "-q", "-m", "a link")
    request.merge()
    assert request.validated()[:2] == ([], 65)
