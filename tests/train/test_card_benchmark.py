"""`python -m benchmarks.card` works before a card is rented: the same code on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_point_of_the_card_runs_on_the_cpu_and_prints_its_rows():
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    command = [sys.executable, "-m", "benchmarks.card", "--dry_run", "--minutes=30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("# CPU, dry run, torch ")
    assert json.loads(lines[-1]) == {
        "benchmark": "card", "device": "CPU, dry run", "failed": [],
    }  # fmt: skip
    for point in ("fp16", "resume", "plan", "offload", "bert"):
        assert any(line.startswith(f"| {point} |") for line in lines), point
    assert "killed and continued: the same bits" in done.stdout


def test_without_a_card_the_program_says_so():
    command = [sys.executable, "-m", "benchmarks.card"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert "device 'cuda'" in done.stderr or "'cuda'" in done.stderr
    assert "Traceback" not in done.stderr
