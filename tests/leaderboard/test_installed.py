"""The package without its extras, installed as a user has it, checks and ranks entries."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaderboard.synthetic import synthetic_gold, write_entries, write_gold

ROOT = Path(__file__).parents[2]
SOURCES = ("smallbench", "jobs", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_without_extras_entries_are_validated_and_ranked(tmp_path):
    """pip, its registry and a fresh environment; no torch."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*command):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "source" / name)
    call(sys.executable, "-m", "venv", "env")
    call("env/bin/pip", "install", "--quiet", "./source")
    installed = {
        package["name"] for package in json.loads(call("env/bin/pip", "list", "--format=json"))
    }
    assert "smallbench" in installed
    assert not {"torch", "transformers", "datasets", "boto3"} & installed

    gold = synthetic_gold(scale=0.02)
    write_gold(tmp_path / "glue", gold)
    write_entries(tmp_path / "submissions", 2, gold)
    job = ("env/bin/smallbench", "leaderboard")
    found = call(*job, "validate", "submissions/entry-000", "--glue=glue", "--json")
    assert json.loads(found)["tier"] == "claimed"
    table = call(*job, "table", "--submissions=submissions", "--glue=glue")
    assert table.count("*claimed*") == 6  # two entries on three boards
