"""What a pod's exit code means: repeated, counted or final."""

from __future__ import annotations

import pytest

from smallbench.errors import ExitCode
from tests.cluster.job_controller import Ended, job_is_over, verdict
from tests.cluster.kustomize import INDEXED

RETRIED = {ExitCode.CRASH, ExitCode.UNAVAILABLE, ExitCode.SIGINT, ExitCode.SIGTERM}
"""Counted: another node or another hour may do better."""
FINAL = {
    ExitCode.USAGE,
    ExitCode.DATA,
    ExitCode.DIVERGED,
    ExitCode.CONFLICT,
    ExitCode.CREDENTIALS,
    ExitCode.CONFIG,
}
KILLED = 137


def test_the_code_has_no_exit_code_without_a_verdict():
    assert set(ExitCode) == {ExitCode.DONE, ExitCode.INTERRUPTED} | RETRIED | FINAL


def test_the_policys_codes_are_the_codes_own(spec):
    rules = [
        rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    again, final = (set(rule["values"]) for rule in rules)
    assert again == {ExitCode.INTERRUPTED}
    assert final == FINAL | {64}, "64 is other programs' 2"
    assert all(rule["containerName"] == "smallbench" for rule in rules)


def test_a_finished_pod_ends_its_part(spec):
    assert verdict(spec, [Ended(0)]) == "done"


def test_an_interrupted_pod_goes_on_as_often_as_it_takes(spec):
    ends = [Ended(ExitCode.INTERRUPTED)] * 20
    assert verdict(spec, ends) == "again"
    assert verdict(spec, [*ends, Ended(0)]) == "done"


@pytest.mark.parametrize("code", [*sorted(RETRIED), KILLED])
def test_a_node_that_is_taken_away_counts_for_nothing(spec, code):
    """Also where the pod had no time to save."""
    assert verdict(spec, [Ended(code, is_disrupted=True)] * 20) == "again"
    assert verdict(spec, [Ended(KILLED, is_disrupted=True)] * 20 + [Ended(code)]) == "counted"


@pytest.mark.parametrize("code", [*sorted(RETRIED), KILLED])
def test_what_may_go_better_is_tried_four_times(spec, stage, code):
    assert verdict(spec, [Ended(code)] * 3) == "counted"
    over = "index over" if stage in INDEXED else "job over"
    assert verdict(spec, [Ended(code)] * 4) == over


@pytest.mark.parametrize("code", sorted(FINAL))
def test_what_no_repetition_cures_is_over_at_once(spec, stage, code):
    assert verdict(spec, [Ended(code)]) == ("index over" if stage in INDEXED else "job over")


def test_one_bad_row_leaves_the_others_alone_but_a_lost_share_ends_the_corpus(spec, stage):
    if stage in INDEXED:
        assert job_is_over(spec, 1) == (stage == "prepare")
        assert job_is_over(spec, spec["completions"] - 1) == (
            stage == "prepare" and spec["completions"] > 1
        )
