"""The glue job's flags: what each action needs, and which shard a pod does."""

import numpy as np
import pytest

from jobs.cli import main
from jobs.glue import Options
from smallbench.errors import ConfigError, UsageError
from smallbench.glue.results import run_directory, write_run
from tests.glue.runs import run_of

MEASURE = {"model": "m", "glue": "g", "out": "o"}


def test_every_action_says_what_it_needs():
    for action, given, missing in [
        ("measure", {"glue": "g", "out": "o"}, "model"),
        ("show", {}, "run"),
        ("merge", {"run": ("a", "b")}, "out"),
        ("submit-file", {"out": "glue.zip"}, "run"),
        ("check-file", {}, "run"),
    ]:
        with pytest.raises(UsageError, match=f"'glue {action}' needs --{missing}"):
            Options(action=action, **given)
    with pytest.raises(UsageError, match="takes one --run"):
        Options(action="show", run=("a", "b"))


@pytest.mark.parametrize(
    ("flags", "index", "part"),
    [
        ({}, None, (1, 1)),
        ({}, "2", (1, 1)),  # an Indexed Job whose pods share one --out
        ({"shard": "3/8"}, None, (3, 8)),
        ({"shard": "1/1"}, "5", (1, 1)),
        ({"num_shards": 8}, "0", (1, 8)),
        ({"num_shards": 8}, "7", (8, 8)),
    ],
)
def test_the_shard_is_the_flags_or_the_jobs(flags, index, part, monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert Options(**MEASURE, **flags).part() == part


@pytest.mark.parametrize(
    ("flags", "index", "message"),
    [
        ({"shard": "0/8"}, None, "0/8 is none"),
        ({"shard": "9/8"}, None, "9/8 is none"),
        ({"shard": "three"}, None, "three/ is none"),
        ({"shard": "-1/2"}, None, "is none"),
        ({"num_shards": 8}, None, "goes with JOB_COMPLETION_INDEX"),
        ({"num_shards": 8}, "8", "9/8 is none"),
        ({"num_shards": 8, "shard": "1/8"}, "0", "give one"),
    ],
)
def test_a_shard_that_is_none_starts_nothing(flags, index, message, monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    with pytest.raises(UsageError, match=message):
        Options(**MEASURE, **flags)


@pytest.mark.parametrize("flags", [{"seeds": (1, 1)}, {"seeds": (-1,)}, {"learning_rate": ()}])
def test_seeds_and_rates_are_checked(flags):
    with pytest.raises(ConfigError, match=next(iter(flags))):
        Options(**MEASURE, **flags)


def test_stored_runs_are_shown_merged_and_packed_from_the_command_line(tmp_path, capsys):
    for seed in (1, 2):
        run = run_of("cola", score=seed / 4, seed=seed)
        values = np.resize([0, 1, 1], 1063)
        folder = run_directory(tmp_path / f"shard{seed}", run.settings)
        write_run(folder, run, {"dev": values[:100], "test": values[: 1061 + seed]})
    merged, pack = tmp_path / "merged", tmp_path / "glue.zip"
    assert main(["glue", "merge", f"{tmp_path}/shard1,{tmp_path}/shard2", f"--out={merged}"]) == 0
    mean = capsys.readouterr().out
    assert "| CoLA | matthews | 37.50 |" in mean
    assert main(["glue", "show", str(merged)]) == 0
    assert capsys.readouterr().out == mean
    assert main(["glue", "show", str(merged), "--protocol=paper"]) == 0
    assert "| CoLA | matthews | 50.00 |" in capsys.readouterr().out
    assert main(["glue", "submit-file", f"--run={tmp_path}/shard1", f"--out={pack}"]) == 65
    assert "1,062 predictions for CoLA.tsv, expected 1,063" in capsys.readouterr().err
    assert not pack.exists()
    assert main(["glue", "submit-file", f"--run={merged}", f"--out={pack}"]) == 0
    assert "2 of 11 files" in capsys.readouterr().out
    assert main(["glue", "check-file", str(pack)]) == 65
    assert "lacks SST-2.tsv" in capsys.readouterr().err
