"""One command makes an entry, can be resumed anywhere, and refuses impossible requests first."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smallbench.glue import samples
from smallbench.jobs import enter
from smallbench.jobs.cli import main
from smallbench.jobs.resolve import resolve
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.log_check import MIN_POINTS
from smallbench.recipes import recipe_config

SMALL = (
    "--sequence_length=32", "--model.num_hidden_layers=1", "--model.hidden_size=32",
    "--model.embedding_size=32", "--model.intermediate_size=64", "--train.global_batch_size=4",
    "--train.num_eval_rows=8", "--train.log_every_steps=1", "--train.save_every_steps=50",
    "--train.device=cpu",
)  # fmt: skip
ENOUGH = (*SMALL, "--flops=2.5e9")
"""As many steps as the log of an entry must have."""
TIMES = {"wall_seconds", "gpu_active_seconds", "kwh", "train_log_sha256", "command",
         "git_commit", "dirty"}  # fmt: skip
"""What a clock says, the hash over it, and the code, which may be committed while this runs."""


def write_few_samples(folder):
    """The sample tasks with so few rows to train on that a protocol's runs take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "NUM_ROWS", {"train": 48, "dev": 100, "test": 100})
        samples.write_sample_glue(folder)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_few_samples(folder)
    return folder


def line(corpus, glue, out, *flags):
    return ["enter", "tiny", "bert-tiny", f"--data={corpus}", f"--glue={glue}", f"--out={out}",
            *flags]  # fmt: skip


def resolved(arguments):
    """Options and configuration of a command line."""
    return resolve(enter.JOB, arguments[1:], {})[1:]


@pytest.mark.parametrize(
    ("flags", "given"),
    [("--flops=2e14", "2e+14"), ("--train.max_flops=4e14", "4e+14"),
     ("--train.max_flops=none --schedule.along=steps", "none")],
)  # fmt: skip
def test_a_budget_over_the_tracks_limit_is_refused(flags, given, corpus, glue, tmp_path, capsys):
    assert main(line(corpus, glue, tmp_path / "o", *flags.split())) == 78
    flag = flags.partition("=")[0]
    expected = f"{flag}={given} is too much for the 2e+14 training FLOPs of track tiny; expected"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--code=http://x.y", "an https:// link"),
        ("--code=nonsense", "an https:// link"),
        ("--contact=", "1 to 200 visible characters"),
        ("--contact=a\u200bb", "1 to 200 visible characters"),
        ("--authors=,", "1 to 100 names"),
        ("--license=do what you want", "an SPDX identifier"),
        ("--notes=" + 1_001 * "x", "1 to 1,000 visible characters"),
        ("--name= ", "1 to 200 visible characters"),
    ],
)
def test_what_the_board_would_reject_is_refused_first(
    flag, expected, corpus, glue, tmp_path, capsys
):
    assert main(line(corpus, glue, tmp_path / "o", flag)) == 78
    error = capsys.readouterr().err
    assert flag.partition("=")[0] in error
    assert expected in error
    assert not (tmp_path / "o").exists()


def test_a_budget_of_too_few_steps_for_a_log_is_refused(corpus, glue, tmp_path, capsys):
    arguments = line(corpus, glue, tmp_path / "o", *SMALL, "--flops=5e8")
    steps = enter.num_steps(resolved(arguments)[1], corpus)
    assert 0 < steps <= MIN_POINTS
    assert main(arguments) == 78
    expected = f"about {steps} steps; an entry's log has at least {MIN_POINTS} records"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flag", ["--seed=5", "--train.seed=5"])
def test_the_folder_is_named_by_the_seed_of_the_run(flag, corpus, glue, tmp_path):
    assert enter.slug(*resolved(line(corpus, glue, tmp_path, flag))) == "bert-tiny-seed-5"


def test_rows_that_are_not_official_are_refused_before_any_training(corpus, glue, tmp_path, capsys):
    changed = shutil.copytree(glue, tmp_path / "glue")
    (changed / "SAMPLE.json").unlink()
    assert main(line(corpus, changed, tmp_path / "o", *ENOUGH)) == 65
    assert "an entry needs the official rows, but CoLA train has 48" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flag", ["--flops=5e9", "--train.max_flops=5e9"])
def test_a_dry_run_says_the_tracks_rule_and_the_runs_steps(flag, corpus, glue, tmp_path, capsys):
    arguments = line(corpus, glue, tmp_path / "o", *SMALL, flag)
    steps = enter.num_steps(resolved(arguments)[1], corpus)
    assert main([*arguments, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "# track tiny: any hardware, at most 2e14 training FLOPs; protocol tiny-v1",
        f"# pretraining: 5e+09 training FLOPs, about {steps:,} steps",
    ]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("steps", "every"), [(201, 1), (3_525, 17), (4_000, 19), (6_531, 20)])
def test_a_smaller_budget_still_logs_what_the_board_asks_for(steps, every, monkeypatch, tmp_path):
    monkeypatch.setattr(enter, "num_steps", lambda config, data: steps)
    fitted = enter.fitted_to_steps(recipe_config("modern-tiny"), tmp_path)
    assert fitted.train.log_every_steps == every
    assert steps // every > MIN_POINTS
    assert fitted.train.milestones == (steps // 4, steps // 2)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def untimed(files):
    """An entry's files without times."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in TIMES}
        return value

    entry = plain(json.loads(files["entry.json"]))
    log = [
        {key: value for key, value in json.loads(one).items()
         if key not in {"seconds", "tokens_per_second", "sha256", "peak_memory_bytes"}}
        for one in files["train_log.jsonl"].splitlines()
    ]  # fmt: skip
    return {**files, "entry.json": entry, "train_log.jsonl": log}


def killed_at(arguments, is_moment):
    """Run a command and kill it at the line for which `is_moment` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smallbench.jobs.cli", *arguments], stdout=subprocess.PIPE, text=True
    )
    for printed in process.stdout:
        if is_moment(printed):
            process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "it ended before the moment came"


def nth(count, text):
    """Whether a line is the n-th that holds `text`."""
    seen = iter(range(count))

    def is_moment(printed):
        return text in printed and next(seen, None) == count - 1

    return is_moment


@pytest.mark.slow
def test_killed_at_random_moments_and_continued_equals_uninterrupted(corpus, glue, tmp_path):
    draw = random.Random(7)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(line(corpus, glue, whole, *ENOUGH)) == 0
    entry = contents(whole / "entry" / "bert-tiny-seed-1")
    killed_at(line(corpus, glue, parts, *ENOUGH), nth(draw.randint(60, 200), '"event": "train"'))
    killed_at(line(corpus, glue, parts, *ENOUGH), nth(draw.randint(1, 15), '"was_stored": false'))
    killed_at(line(corpus, glue, parts, *ENOUGH), nth(draw.randint(1, 10), '"was_stored": false'))
    assert main(line(corpus, glue, parts, *ENOUGH)) == 0
    continued = contents(parts / "entry" / "bert-tiny-seed-1")
    assert untimed(continued) == untimed(entry)
    # Times come from the stored run, so repeating the command changes nothing.
    assert main(line(corpus, glue, parts, *ENOUGH)) == 0
    assert contents(parts / "entry" / "bert-tiny-seed-1") == continued
    found = read_submission(whole / "entry" / "bert-tiny-seed-1").entry
    assert found.measured.finetune.protocol == "tiny-v1"
    assert {path.name for path in (whole / "entry").iterdir()} == {"bert-tiny-seed-1"}


@pytest.mark.slow
def test_a_run_made_again_keeps_the_scores_of_equal_weights(corpus, glue, tmp_path, capsys):
    arguments = line(corpus, glue, tmp_path, *ENOUGH)
    assert main(arguments) == 0
    first = contents(tmp_path / "glue")
    for name in ("run", "export"):
        shutil.rmtree(tmp_path / name)
    assert main(arguments) == 0
    again = contents(tmp_path / "glue")
    assert again.keys() == first.keys()
    renamed = {path for path in first if again[path] != first[path]}
    assert {Path(path).name for path in renamed} == {"result.json"}  # the run that it names
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "export")
    assert main([*arguments, "--seed=2"]) == 78
    assert f"delete {tmp_path / 'glue'} and run the same command" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_are_a_reference_of_the_tracks_protocol(corpus, glue, tmp_path, capsys):
    assert main(line(corpus, glue, tmp_path, *SMALL, "--random_weights")) == 0
    assert "bert-tiny-random-seed-1: accepted as reference" in capsys.readouterr().out
    entry = read_submission(tmp_path / "entry" / "bert-tiny-random-seed-1").entry
    assert entry.finetune.protocol == "tiny-v1"
    assert set(entry.finetune.chosen) == {"cola", "sst2", "mrpc", "stsb", "rte"}
    assert "not ranked" in entry.notes[0]
