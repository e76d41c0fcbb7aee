"""A call that stalls, grows or dies affects only its own item and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallbench.leaderboard.evaluation import evaluate, evaluate_each
from smallbench.leaderboard.guard import Failure, Limits, call_each
from smallbench.leaderboard.verdict import report_dict
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_entries, write_made

ROOT = Path(__file__).parents[2]
TIGHT = Limits(seconds=2.0, memory_bytes=256 << 20)


def behave(item):
    """Behave as a reader of untrusted content may."""
    if item == "stall":
        time.sleep(600)
    elif item == "spin":
        while True:
            pass
    elif item == "grow":
        return len(bytearray(1 << 30))
    elif item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif item == "leave":
        os._exit(3)
    elif item == "raise":
        raise KeyError("no such thing")
    return item, os.getpid()


REASONS = {
    "stall": ("limits", "reading it takes more than 2 s"),
    "grow": ("limits", "reading it takes more than 256 MiB of memory"),
    "die": ("limits", "reading it was ended by SIGKILL"),
    "leave": ("limits", "reading it was ended with exit code 3"),
    "raise": ("crash", "reading it raised KeyError: 'no such thing'"),
}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_call_beyond_its_limits_fails_alone_and_for_its_reason(num_workers, capfd):
    items = [0, *(word for pair in zip(REASONS, range(1, 6), strict=True) for word in pair)]
    found = call_each(behave, items, limits=TIGHT, num_workers=num_workers)
    for item, result in zip(items, found, strict=True):
        if item in REASONS:
            assert result == Failure(*REASONS[item])
        else:
            assert result[0] == item
            assert result[1] != os.getpid()
    assert "KeyError: 'no such thing'" in capfd.readouterr().err


def test_items_outnumber_workers_and_results_keep_their_order():
    found = call_each(behave, range(20), num_workers=2)
    assert [item for item, _ in found] == list(range(20))
    assert len({pid for _, pid in found}) == 2
    assert call_each(behave, []) == []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 600), (signal.SIGKILL, 2)], ids=["Ctrl-C", "killed"]
)
def test_no_worker_outlives_its_parent(number, seconds):
    """Not even a worker in an endless loop, whose parent cannot end it."""
    program = (
        "from tests.leaderboard.test_guard import Limits, behave, call_each\n"
        f"call_each(behave, ['spin'], limits=Limits(seconds={seconds}))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    workers = wait_until(lambda: children.read_text().split())
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    assert parent.wait() == -number
    wait_until(lambda: not any(map(is_running, map(int, workers))))


# ---- entries


GOLD = synthetic_gold(scale=0.02)


def test_entries_are_evaluated_as_in_one_process_whatever_the_number_of_workers(tmp_path):
    folders = write_entries(tmp_path, 3, GOLD)
    expected = [report_dict(evaluate(folder, GOLD)) for folder in folders]
    for cores in ({0}, os.sched_getaffinity(0)):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, cores & before or before)
            found = evaluate_each(folders, GOLD)
        finally:
            os.sched_setaffinity(0, before)
        assert list(map(report_dict, found)) == expected


# In a fresh process, which has no memory to spare from other tests.
PROGRAM = """
import json, sys
from pathlib import Path
from smallbench.leaderboard.evaluation import evaluate_each
from smallbench.leaderboard.verdict import report_dict
from smallbench.leaderboard.guard import LIMITS, Limits
from tests.leaderboard.synthetic import synthetic_gold

folders = sorted(Path(sys.argv[1]).iterdir())
for limits in (Limits(memory_bytes=8 << 20), LIMITS):
    for evaluation in evaluate_each(folders, synthetic_gold(scale=0.02), limits=limits):
        print(json.dumps(report_dict(evaluation)))
"""


def test_an_entry_that_takes_too_much_is_rejected_and_stops_no_other(tmp_path):
    """A log of the most lines that are legal, where memory is less than it is by default."""
    folders = write_entries(tmp_path, 2, GOLD)
    heavy = write_made(tmp_path, synthetic_entry("a-heavy-one", GOLD, seed=1))
    first, *_ = (heavy / "train_log.jsonl").read_text().splitlines(keepends=True)
    (heavy / "train_log.jsonl").write_text(first.replace('": "', '": "' + 90 * "0") * 50_000)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    (refused, *others), (read, *same) = (
        [json.loads(line) for line in half]
        for half in (done.stdout.splitlines()[:3], done.stdout.splitlines()[3:])
    )
    assert refused["findings"] == [
        {"check": "limits", "verdict": "rejected",
         "reason": "reading it takes more than 8 MiB of memory"}
    ]  # fmt: skip
    assert (refused["slug"], refused["tier"], refused["sha256"]) == ("a-heavy-one", None, None)
    assert [other["slug"] for other in others] == [folder.name for folder in folders]
    assert [other["tier"] for other in others] == ["logged", "logged"]
    assert others == same
    assert {f["check"] for f in read["findings"] if f["verdict"] == "rejected"} == {"log"}


def test_a_crash_of_the_checks_is_a_rejection_that_says_so(tmp_path, monkeypatch, capfd):
    folders = write_entries(tmp_path, 2, GOLD)
    real = evaluate

    def fail(folder, *arguments):
        return real(folder, *arguments) if folder != folders[0] else 1 / 0

    monkeypatch.setattr("smallbench.leaderboard.evaluation.evaluate", fail)
    crashed, good = evaluate_each(folders, GOLD)
    assert [(f.check, f.verdict) for f in crashed.findings] == [("crash", "rejected")]
    assert "ZeroDivisionError" in crashed.findings[0].reason
    assert "Traceback" in capfd.readouterr().err
    assert good.tier == "logged"
