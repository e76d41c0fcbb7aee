"""Tiers, the cache, the board of two views, a comparison, and the job without torch."""

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from smallbench.glue.choice import choice_data
from smallbench.glue.metrics import compute_metrics
from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import evaluation as module
from smallbench.leaderboard.board import board_rows, compare, render_board, render_comparison
from smallbench.leaderboard.evaluation import (
    VERIFIED_FILE,
    evaluate,
    evaluate_all,
    evaluate_beside,
)
from smallbench.leaderboard.folder import (
    chosen_tasks,
    fingerprint,
    read_files,
    read_submission,
)
from smallbench.leaderboard.gold import NO_GOLD, Gold, read_gold, with_choices
from smallbench.leaderboard.scores import PAPER_TRIALS
from smallbench.leaderboard.statistics import expected_maximum
from smallbench.leaderboard.verdict import report_dict, report_text
from tests.leaderboard.synthetic import (
    synthetic_entry,
    synthetic_gold,
    write_entries,
    write_gold,
    write_made,
)

ROOT = Path(__file__).parents[2]
GOLD = synthetic_gold(scale=0.02)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three entries, the last far behind; none is changed by a test."""
    folder = tmp_path_factory.mktemp("board")
    write_entries(folder, 2, GOLD)
    write_made(folder, synthetic_entry("weak", GOLD, seed=9, quality=-15))
    return folder


def test_both_views_are_computed_from_the_same_runs(root):
    views = evaluate(root / "entry-000", GOLD).views
    submission = read_submission(root / "entry-000")
    for name, task in TASKS.items():
        labels = GOLD.labels[name]["dev"]
        scores = [
            100 * compute_metrics(task, submission.predictions[run.predictions["dev"]], labels)[
                task.ranking_metric
            ]
            for run in submission.runs
            if run.task == name
        ]  # fmt: skip
        robust, paper = (views[view].tasks[name] for view in ("robust", "paper"))
        assert robust.score == pytest.approx(np.mean(scores))
        assert paper.score == pytest.approx(max(scores))
        assert paper.expected_maximum == pytest.approx(expected_maximum(scores, PAPER_TRIALS))
        assert (robust.median, robust.minimum, robust.maximum) == pytest.approx(
            (np.median(scores), min(scores), max(scores))
        )
        assert robust.interval.low < robust.score < robust.interval.high
    average = np.mean([views["robust"].tasks[name].score for name in TASKS])
    assert views["robust"].average == pytest.approx(average)
    assert "accuracy dev_mismatched" in views["robust"].tasks["mnli"].metrics


@pytest.mark.parametrize(
    ("gold", "tier"),
    [
        (GOLD, "logged"),
        (Gold(GOLD.labels, frozenset()), "claimed"),
        (Gold({k: v for k, v in GOLD.labels.items() if k != "qqp"}, GOLD.pinned), "claimed"),
    ],
    ids=["pinned", "not pinned", "one missing"],
)
def test_the_tier_is_the_one_that_the_evidence_supports(gold, tier, root, tmp_path):
    # Without its gold a task's rows must be the official ones.
    if not gold.has("qqp"):
        made = synthetic_entry("entry-000", GOLD, seed=0)
        full = synthetic_entry("entry-000", synthetic_gold(), seed=0)
        predictions = {k: full.predictions[k] if "qqp" in k else v
                       for k, v in made.predictions.items()}  # fmt: skip
        assert made.runs == full.runs
        made = type(made)(made.entry, made.runs, predictions, made.train_log)
        root = write_made(tmp_path, made).parent
    evaluation = evaluate(root / "entry-000", gold)
    assert evaluation.tier == tier
    assert (evaluation.views["robust"].average is None) == (not gold.has("qqp"))


def test_verified_is_given_by_the_keepers_to_exactly_these_bytes(root, tmp_path):
    shutil.copytree(root, tmp_path / "board")
    folder = tmp_path / "board" / "entry-000"
    words = {"entry-000": fingerprint(read_files(folder)), "entry-001": "0" * 64}
    (tmp_path / "board" / VERIFIED_FILE).write_text(json.dumps(words))
    tiers = [e.tier for e in evaluate_all(tmp_path / "board", GOLD)]
    assert tiers == ["verified", "logged", "logged"]
    entry = folder / "entry.json"
    entry.write_text(entry.read_text().replace("Someone Else", "Someone else"))
    assert evaluate_all(tmp_path / "board", GOLD)[0].tier == "logged"


def test_cached_results_equal_computed_ones_and_changes_are_detected(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "board")
    first = evaluate_all(tmp_path / "board", GOLD, cache=tmp_path / "cache")

    def fail(*args):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_checks", fail)
        again = evaluate_all(tmp_path / "board", GOLD, cache=tmp_path / "cache")
        other = synthetic_gold(1, scale=0.02)
        for evaluation in evaluate_all(tmp_path / "board", other, cache=tmp_path / "cache"):
            assert "computed again" in evaluation.findings[0].reason
    for a, b in zip(first, again, strict=True):
        assert report_dict(a) == report_dict(b)
        assert a.entry == b.entry
        assert np.array_equal(a.views["robust"].draws, b.views["robust"].draws)
    for path in (tmp_path / "cache").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    mended = evaluate_all(tmp_path / "board", GOLD, cache=tmp_path / "cache")
    assert list(map(report_dict, mended)) == list(map(report_dict, first))
    entry = tmp_path / "board" / "entry-000" / "entry.json"
    entry.write_text(entry.read_text().replace('"tier": "logged"', '"tier": "verified"'))
    assert evaluate_all(tmp_path / "board", GOLD, cache=tmp_path / "cache")[0].rejected


def test_a_date_is_compared_with_the_day_of_the_check_and_never_on_a_board(root):
    folder = root / "entry-000"  # of 2025-01-01
    expected = {
        date(2024, 12, 30): ["rejected"],
        date(2024, 12, 31): [],
        date(2025, 3, 2): [],
        date(2025, 3, 3): ["flagged"],
    }
    for today, verdicts in expected.items():
        found = evaluate_beside(folder, GOLD, today=today).findings
        assert [f.verdict for f in found if f.check == "date" and f.reason] == verdicts
    quoted = evaluate_beside(ROOT / "submissions/reported-bert", NO_GOLD, today=date(2026, 1, 1))
    assert not [f for f in quoted.findings if f.verdict == "flagged"], "of its paper's date"
    board = evaluate_all(root, GOLD)
    assert not [f for one in board for f in one.findings if f.check == "date" and f.reason]


def test_the_board_ranks_each_view_by_itself_with_ties_as_ranges(root):
    evaluations = evaluate_all(root, GOLD)
    for view in ("robust", "paper"):
        rows = board_rows(evaluations, view)
        assert [row.average for row in rows] == sorted((r.average for r in rows), reverse=True)
        assert rows[-1].entry.slug == "weak"
        assert str(rows[-1].rank) == "3"
        assert {str(row.rank) for row in rows[:2]} in ({"1–2"}, {"1", "2"})
        assert {row.view.name for row in rows} == {view}
    again = board_rows(list(reversed(evaluations)), "robust")
    assert [row.entry.slug for row in again] == [
        r.entry.slug for r in board_rows(evaluations, "robust")
    ]
    small, tiny, others, paper = render_board(evaluations).split("## ")[1:]
    assert small.count("*logged*") == others.count("*logged*") == paper.count("*logged*") == 3
    assert "*logged*" not in tiny


def test_a_comparison_goes_task_by_task_and_within_a_view(root):
    strong, weak = (evaluate(root / name, GOLD) for name in ("entry-000", "weak"))
    rows = compare(strong.views["robust"], weak.views["robust"])
    assert [row.name for row in rows] == [*(task.column for task in TASKS.values()), "AVG"]
    assert rows[-1].verdict == "A leads"
    assert rows[-1].interval.low > 0
    back = compare(weak.views["robust"], strong.views["robust"])[-1]
    assert back.verdict == "B leads"
    assert back.interval.high == pytest.approx(-rows[-1].interval.low, abs=0.1)
    assert compare(weak.views["robust"], weak.views["robust"])[-1].verdict == "tie"
    with pytest.raises(AssertionError, match="cannot be compared"):
        compare(strong.views["robust"], weak.views["paper"])
    text = render_comparison(strong, weak)
    assert "robust" in text
    assert "paper" in text


def test_the_rows_that_choose_are_read_from_train_and_kept(tmp_path, monkeypatch):
    write_sample_glue(tmp_path / "glue")
    gold = read_gold(tmp_path / "glue")
    assert not gold.choices  # a board without such entries reads no train split
    data = choice_data(load_task(TASKS["rte"], tmp_path / "glue")).splits["choice"]
    found = with_choices(gold, ["rte"], cache=tmp_path / "cache").choices
    assert set(found) == {"rte"}
    assert found["rte"].sha256 == data.sha256
    assert np.array_equal(found["rte"].labels, data.labels)
    with monkeypatch.context() as patch:
        patch.setattr("smallbench.leaderboard.gold.read_tsv", None)  # not read again
        kept = with_choices(gold, ["rte"], cache=tmp_path / "cache").choices["rte"]
    assert (kept.sha256, kept.labels.tolist()) == (data.sha256, data.labels.tolist())
    (tmp_path / "glue" / "RTE" / "train.tsv").unlink()
    assert not with_choices(gold, ["rte"], cache=tmp_path / "cache").choices


def test_the_tasks_that_chose_a_rate_are_seen_before_an_entry_is_read(root, tmp_path):
    assert chosen_tasks([root / "weak"]) == set(TASKS)
    assert chosen_tasks([tmp_path / "missing", tmp_path]) == set()


def test_a_report_ends_with_the_verdict(root):
    text = report_text(evaluate(root / "entry-000", GOLD))
    assert text.endswith("entry-000: accepted as logged")
    assert "robust: AVG" in text
    assert "rejected" in report_text(evaluate(root, NO_GOLD))


# Whatever imports torch or what training needs ends with an error.
BLOCKED = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "tokenizers", "datasets", "pyarrow"}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
from smallbench.jobs.cli import main

for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def smallbench(*lines):
    """Exit code, output and errors of command lines, all in one process without torch."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], input=json.dumps([list(map(str, x)) for x in lines]),
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_the_job_validates_compares_and_ranks_without_torch(root, tmp_path):
    write_gold(tmp_path / "glue", GOLD)
    shutil.copytree(root / "weak", tmp_path / "other-name")
    glue, cache = f"--glue={tmp_path}/glue", f"--cache={tmp_path}/cache"
    validated, compared, ranked, built, refused, empty, absent = smallbench(
        ("leaderboard", "validate", root / "entry-000", glue, cache, "--json"),
        ("leaderboard", "compare", root / "entry-000", root / "weak", glue, cache),
        ("leaderboard", "table", f"--submissions={root}", glue, cache),
        ("leaderboard", "build", f"--submissions={root}", glue, cache, f"--out={tmp_path}/site"),
        ("leaderboard", "validate", tmp_path / "other-name", glue),
        ("leaderboard", "validate"),
        ("leaderboard", "compare", root / "weak", tmp_path / "typo", glue),
    )
    assert [code for code, _, _ in (validated, compared, ranked, built)] == [0] * 4
    # Labels that are marked as no GLUE: scored, but nothing more than claimed.
    assert json.loads(validated[1])["tier"] == "claimed"
    assert "A leads" in compared[1]
    assert "robust-v1: mean over seeds" in ranked[1]
    assert "3 entries, 0 rejected" in built[1]
    assert (tmp_path / "site" / "entries" / "weak" / "index.html").is_file()
    assert refused[0] == 65
    assert "REJECTED  slug" in refused[1]
    assert "is rejected: slug" in refused[2]
    assert empty[0] == 2
    assert "ENTRY is missing" in empty[2]
    assert absent[0] == 65
    assert "typo is not a directory; expected the folder of an entry" in absent[2]


@pytest.mark.real_data
def test_the_official_labels_are_the_pinned_ones_and_others_are_refused(test_data, tmp_path):
    from smallbench.errors import DataError
    from smallbench.glue.official import PINS
    from smallbench.leaderboard.gold import read_gold

    gold = read_gold(test_data / "glue")
    assert gold.pinned == set(PINS) == set(gold.labels)
    shutil.copytree(test_data / "glue" / "SST-2", tmp_path / "SST-2")
    dev = tmp_path / "SST-2" / "dev.tsv"
    dev.chmod(0o644)
    first, second = dev.read_text().split("\n", 1)
    flipped = second.replace("\t1\n", "\t0\n", 1)
    dev.write_text(f"{first}\n{flipped}")
    with pytest.raises(DataError, match="SST-2 dev has the official number of rows but not the"):
        read_gold(tmp_path)
    turned = second.splitlines(keepends=True)[::-1]
    dev.write_text(f"{first}\n{''.join(turned)}")
    with pytest.raises(DataError, match=r"SST-2 dev does not have .* in the official order"):
        read_gold(tmp_path)
