"""One command makes an entry, can be resumed anywhere, and refuses impossible requests first."""

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest

from smallbench.glue import samples
from smallbench.jobs import enter
from smallbench.jobs.cli import main
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.log_check import MIN_POINTS
from smallbench.recipes import recipe_config

SMALL = (
    "--sequence_length=32", "--model.num_hidden_layers=1", "--model.hidden_size=32",
    "--model.embedding_size=32", "--model.intermediate_size=64", "--train.global_batch_size=4",
    "--train.num_eval_rows=8", "--train.log_every_steps=1", "--train.save_every_steps=50",
    "--train.device=cpu", "--flops=2.5e9",
)  # fmt: skip
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


def test_a_budget_over_the_tracks_limit_is_refused(corpus, glue, tmp_path, capsys):
    assert main(line(corpus, glue, tmp_path / "o", "--flops=3e14")) == 78
    assert "--flops=3e+14 is over the 2e+14 training FLOPs of track tiny" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_rows_that_are_not_official_are_refused_before_any_training(corpus, glue, tmp_path, capsys):
    changed = shutil.copytree(glue, tmp_path / "glue")
    (changed / "SAMPLE.json").unlink()
    assert main(line(corpus, changed, tmp_path / "o", *SMALL)) == 65
    assert "an entry needs the official rows, but CoLA train has 48" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_dry_run_says_the_tracks_rule_and_the_number_of_steps(corpus, glue, tmp_path, capsys):
    assert main(line(corpus, glue, tmp_path / "o", *SMALL, "--dry_run")) == 0
    page = capsys.readouterr().out
    assert "# track tiny: any hardware, at most 2e14 training FLOPs; protocol tiny-v1" in page
    assert "steps" in page.splitlines()[-1]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("steps", "every"), [(150, 20), (3_525, 17), (4_000, 19), (6_531, 20)])
def test_a_smaller_budget_still_logs_what_the_board_asks_for(steps, every, monkeypatch, tmp_path):
    monkeypatch.setattr(enter, "num_steps", lambda config, data: steps)
    fitted = enter.fitted_to_steps(recipe_config("modern-tiny"), tmp_path)
    assert fitted.train.log_every_steps == every
    assert steps // every > MIN_POINTS or steps < MIN_POINTS
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
    assert main(line(corpus, glue, whole, *SMALL)) == 0
    entry = contents(whole / "entry" / "bert-tiny-seed-1")
    killed_at(line(corpus, glue, parts, *SMALL), nth(draw.randint(60, 200), '"event": "train"'))
    killed_at(line(corpus, glue, parts, *SMALL), nth(draw.randint(1, 15), '"was_stored": false'))
    killed_at(line(corpus, glue, parts, *SMALL), nth(draw.randint(1, 10), '"was_stored": false'))
    assert main(line(corpus, glue, parts, *SMALL)) == 0
    continued = contents(parts / "entry" / "bert-tiny-seed-1")
    assert untimed(continued) == untimed(entry)
    # Times come from the stored run, so repeating the command changes nothing.
    assert main(line(corpus, glue, parts, *SMALL)) == 0
    assert contents(parts / "entry" / "bert-tiny-seed-1") == continued
    found = read_submission(whole / "entry" / "bert-tiny-seed-1").entry
    assert found.measured.finetune.protocol == "tiny-v1"
    assert {path.name for path in (whole / "entry").iterdir()} == {"bert-tiny-seed-1"}


@pytest.mark.slow
def test_random_weights_are_a_reference_of_the_tracks_protocol(corpus, glue, tmp_path, capsys):
    flags = (*(flag for flag in SMALL if "flops" not in flag), "--random_weights")
    assert main(line(corpus, glue, tmp_path, *flags)) == 0
    assert "bert-tiny-random-seed-1: accepted as reference" in capsys.readouterr().out
    entry = read_submission(tmp_path / "entry" / "bert-tiny-random-seed-1").entry
    assert entry.finetune.protocol == "tiny-v1"
    assert set(entry.finetune.chosen) == {"cola", "sst2", "mrpc", "stsb", "rte"}
    assert "not ranked" in entry.notes[0]
