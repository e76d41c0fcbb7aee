"""Each tampered entry is rejected or flagged for the right reason, in seconds and little memory."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smallbench.leaderboard.evaluation import evaluate, evaluate_all, evaluate_beside
from smallbench.leaderboard.verdict import report_dict
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made
from tests.leaderboard.tampered import CORPUS, write_corpus
from tests.leaderboard.tampered.base import SCALE, prediction
from tests.shared import shared_folder

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 30
MAX_BYTES = 1 << 30

# In a process of its own, which cannot have more than a gigabyte of address space.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))

from smallbench.leaderboard import statistics
from smallbench.leaderboard.evaluation import evaluate_beside
from smallbench.leaderboard.verdict import report_dict, report_text
from tests.leaderboard.synthetic import synthetic_gold
from tests.leaderboard.tampered.base import TODAY

statistics.draw_scores.__kwdefaults__["num_draws"] = 500  # no verdict depends on it
gold = synthetic_gold(scale=float(sys.argv[3]))
for folder in sorted(Path(sys.argv[1]).glob("*/good")):
    start = time.perf_counter()
    evaluation = evaluate_beside(folder, gold, today=TODAY)
    seconds = time.perf_counter() - start
    found = report_dict(evaluation) | {"seconds": seconds, "report": report_text(evaluation)}
    print(json.dumps({"name": folder.parent.name, **found}))
assert not {"torch", "transformers"} & set(sys.modules)
"""


def write_reports(folder):
    root = folder / "tampered"
    root.mkdir()
    write_corpus(root)
    gold = synthetic_gold(scale=SCALE)
    write_made(root / "untouched", synthetic_entry("good", gold, seed=0))
    with (folder / "reports.jsonl").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(root), str(MAX_BYTES), str(SCALE)],
            stdout=out, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = shared_folder(tmp_path_factory, "validation", write_reports)
    found = map(json.loads, (folder / "reports.jsonl").read_text().splitlines())
    return {report["name"]: report for report in found}


def test_the_corpus_is_large_and_was_validated_in_whole(reports):
    assert len(CORPUS) >= 40
    assert set(reports) == {*CORPUS, "untouched"}


def test_the_entry_that_the_corpus_is_made_from_passes_every_check(reports):
    report = reports["untouched"]
    assert {finding["verdict"] for finding in report["findings"]} == {"passed"}
    assert report["tier"] == "logged"
    assert set(report["views"]) == {"robust", "paper"}


@pytest.mark.parametrize("name", CORPUS)
def test_a_tampered_entry_is_found_for_the_right_reason(name, reports):
    case, report = CORPUS[name], reports[name]
    wrong = [f for f in report["findings"] if f["verdict"] != "passed"]
    assert any(
        (f["verdict"], f["check"]) == (case.verdict, case.check)
        and re.search(case.reason, f["reason"])
        for f in wrong
    ), wrong
    assert report["rejected"] == (case.verdict == "rejected")
    if case.verdict == "rejected":
        assert report["tier"] is None
        assert report["views"] == {}
    if case.verdict == "not done":
        assert report["tier"] == "claimed"
    assert report["seconds"] < MAX_SECONDS
    assert "\x1b" not in report["report"]


def test_a_damaged_decoy_neither_stops_a_board_nor_hides_a_copy(tmp_path):
    """It ends like what was copied, and comes first."""
    gold = synthetic_gold(scale=0.02)
    decoy, one, two = (
        write_made(tmp_path, synthetic_entry(name, gold, seed=seed))
        for seed, name in enumerate(("decoy", "one", "two"))
    )
    shutil.copy(prediction(one, "qnli"), prediction(two, "qnli"))
    content = prediction(one, "qnli").read_bytes()
    prediction(decoy, "qnli").write_bytes(content[:20] + content[-8:])
    decoyed, *both = evaluate_all(tmp_path, gold)
    assert [f.check for f in decoyed.findings] == ["predictions"]
    for evaluation, other in zip(both, ("two", "one"), strict=True):
        assert evaluation.tier == "logged"
        (copied,) = [f.reason for f in evaluation.findings if f.check == "copies"]
        assert f"equals {other}/predictions/qnli" in copied
        beside = evaluate_beside(evaluation.folder, gold)
        assert report_dict(beside) == report_dict(evaluation)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, dropped, repeated or exchanged for what JSON gives a meaning."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(data) + 1))
        match rng.integers(0, 4):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:
                del data[at : at + int(rng.integers(1, 400))]
            case 2:
                data[at:at] = data[at : at + 300]
            case _:
                signs = (b"null", b"-1", b"1e308", b"[]", b"{}", b'""', b"0", b"true", b"9" * 19)
                end = at + next((n for n, b in enumerate(data[at:]) if b in b",}]\n"), 0)
                data[at:end] = signs[int(rng.integers(len(signs)))]
    return bytes(data)


def test_every_change_of_an_entry_gets_a_verdict(tmp_path):
    gold = synthetic_gold(scale=0.01)
    folder = write_made(tmp_path, synthetic_entry("good", gold, seed=0))
    rng = np.random.default_rng(int(os.environ.get("SMALLBENCH_TEST_FUZZ", "0")))
    paths = [folder / name for name in ("entry.json", "runs.jsonl", "train_log.jsonl")]
    paths.append(min((folder / "predictions").iterdir()))
    for number in range(100):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, rng))
        evaluation = evaluate(folder, gold)
        assert evaluation.findings
        assert (evaluation.tier is None) == evaluation.rejected
        path.write_bytes(content)
    assert evaluate(folder, gold).tier == "logged"
