"""Cached entries and sites are those that would be computed, and cost no process."""

import shutil
from dataclasses import replace

import pytest

from smallbench.leaderboard import cache as module
from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.site.build import build_site
from smallbench.leaderboard.verdict import report_dict
from tests.leaderboard.synthetic import synthetic_gold, write_entries

GOLD = synthetic_gold(scale=0.02)


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Two cached entries."""
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    write_entries(tmp_path / "board", 2, GOLD)
    evaluate_all(tmp_path / "board", GOLD, cache=tmp_path / "cache")
    return tmp_path / "board"


def fail(*args, **options):
    raise AssertionError("a process was started")


def test_an_unchanged_folder_starts_no_process_and_a_changed_one_is_read(board, monkeypatch):
    computed, cache = evaluate_all(board, GOLD), board.parent / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("smallbench.leaderboard.evaluation.call_each", fail)
        kept = evaluate_all(board, GOLD, cache=cache)
    assert list(map(report_dict, kept)) == list(map(report_dict, computed))
    assert [(e.evidence.digests, list(map(tuple, e.curve))) for e in kept] == [
        (e.evidence.digests, e.curve) for e in computed
    ]
    entry = board / "entry-000" / "entry.json"
    entry.write_text(entry.read_text().replace("Someone Else", "Someone else"))
    assert evaluate_all(board, GOLD, cache=cache)[0].entry.authors[1] == "Someone else"


def test_a_copy_of_a_cached_folder_has_a_wrong_slug(board):
    shutil.copytree(board / "entry-000", board / "copy")
    copy, *_ = evaluate_all(board, GOLD, cache=board.parent / "cache")
    assert [f.check for f in copy.findings if f.verdict == "rejected"] == ["slug"]
    again, *_ = evaluate_all(board, GOLD, cache=board.parent / "cache")
    assert report_dict(again) == report_dict(copy)


def test_damaged_draws_are_computed_again(board):
    cache, whole = board.parent / "cache", evaluate_all(board, GOLD)
    for path in cache.glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    for kept, computed in zip(evaluate_all(board, GOLD, cache=cache), whole, strict=True):
        for name, view in computed.views.items():
            for task, draws in view.task_draws.items():
                assert (kept.views[name].task_draws[task] == draws).all()


def contents(site):
    return {str(p.relative_to(site)): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def test_a_site_of_equal_inputs_is_left_as_it_is(board):
    out, cache = board.parent / "site", board.parent / "cache"
    evaluations = evaluate_all(board, GOLD, cache=cache)

    def is_left(evaluations=evaluations, **values):
        before = out.stat().st_ino
        build_site(evaluations, out, cache=cache, **values)
        kept = out.stat().st_ino == before
        fresh = board.parent / "fresh"
        build_site(evaluations, fresh, **values)
        assert contents(out) == contents(fresh)
        return kept

    build_site(evaluations, out, cache=cache)
    assert is_left()
    (out / "index.html").write_text("changed by hand")
    assert not is_left()
    (out / "feed.xml").write_text("another file")
    assert not is_left()
    (out / "entries" / "entry-000" / "index.html").write_text("changed by hand")
    assert not is_left()
    assert not is_left(evaluations[1:])
    assert not is_left(site_url="https://example.org")
    verified = [replace(evaluations[0], is_verified=True), *evaluations[1:]]
    assert not is_left(verified)
    assert is_left(verified)


def test_an_entry_that_cannot_be_shown_is_rejected_each_time(board, monkeypatch):
    def fail(path):
        raise ValueError("no page")

    out, cache = board.parent / "site", board.parent / "cache"
    evaluations = evaluate_all(board, GOLD, cache=cache)
    monkeypatch.setattr("smallbench.leaderboard.site.build.downloads_of", fail)
    for _ in range(2):
        assert all(shown.rejected for shown in build_site(evaluations, out, cache=cache))
