"""The command line: nothing starts before every word and flag is valid."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallbench.config import command, keys_of
from smallbench.errors import (
    ConfigError,
    ExitCode,
    InterruptedRunError,
    SmallbenchError,
)
from smallbench.jobs import cli
from smallbench.jobs.base import Job, chosen
from smallbench.jobs.resolve import Shared, word_of
from tests.command import command as smallbench
from tests.jobs.example_job import never, words_of
from tests.report.runs import records, write_run

ROOT = Path(__file__).parent.parent.parent

NOTHING_HEAVY = """
import runpy, sys
from smallbench.jobs.cli import JOBS, main

for words in ([], ["--help"], ["-h"], ["--version"], *([job, "--help"] for job in JOBS)):
    assert main(words) == 0
    heavy = {"torch", "transformers", "datasets", "tokenizers", "numpy"} & set(sys.modules)
    assert not heavy, (words, heavy)
for job in JOBS:
    sys.argv = [job, "--help"]
    try:
        runpy.run_module(f"smallbench.jobs.{job}", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0
"""


# Failures end in one sentence and their exit code


def make_job(run: Any) -> Job:
    @dataclass(frozen=True)
    class Nothing:
        pass

    return Job(name="doctor", options=Nothing, run=run)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a\nb"), 78, "smallbench doctor: a b"),
        (InterruptedRunError("saved"), 75, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 65, "x.txt: No such file"),
        (PermissionError(13, "Permission denied", "/x"), 69, "/x: Permission denied for uid"),
        (PermissionError(13, "Permission denied", "/x"), 69, "chown the mounted folder"),
        (OSError(30, "Read-only file system"), 69, "in a container: /scratch"),
        (OSError(30, "Read-only file system", "/x"), 69, "in a container: /scratch"),
        (OSError(28, "No space left on device"), 69, "No space left on device"),
        (OSError(5, "I/O error", "/x"), 69, "/x: I/O error"),
        (OSError([("a", "b", "[Errno 122] Disk quota exceeded")]), 69, "Disk quota exceeded"),
        (ModuleNotFoundError("no", name="torch._C"), 69, "this needs torch._C; pip install"),
        (ModuleNotFoundError("no", name="sentencepiece"), 69, "pip install sentencepiece"),
    ],
)
def test_a_failure_is_one_sentence_and_an_exit_code(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "load", lambda _: make_job(run))
    assert cli.main(["doctor"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("prepare --corpus=text --out=/proc/x/y", 69,
         "Could not create --out=/proc/x/y (No such file or directory); choose a writable"),
        ("prepare --corpus=text --out=a.txt/x", 78, "--out=a.txt/x is below a file; expected a"),
        ("quickstart --out=a.txt", 78, "--out=a.txt is a file; expected a directory, or a new"),
        ("report run --out=text", 78, "--out=text is a directory; expected a file"),
        ("report run --tensorboard=a.txt", 78, "--tensorboard=a.txt is a file; expected a dir"),
        ("checkpoints pull run --out=a.txt", 78, "--out=a.txt is a file; expected a directory"),
        ("plan bert-small --measured=text", 78, "--measured=text is a directory; expected a file"),
        ("plan bert-small --measured=b", 78, "--measured=b does not exist; expected a run's"),
    ],
)  # fmt: skip
def test_a_path_at_fault_is_named_with_its_flag(
    line: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", rows=records())
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "text/a.txt"):
        (tmp_path / name).write_text("A document of words.\n\n" * 99)
    done = smallbench(*line.split(), code=code)
    assert f": {message}" in done.stderr


@pytest.mark.parametrize("error", [RuntimeError("x"), ValueError("x"), OSError(9, "Bad file")])
def test_a_crash_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "load", lambda _: make_job(run))
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_an_exit_code_belongs_to_every_kind_of_error() -> None:
    codes = [kind.exit_code for kind in SmallbenchError.__subclasses__()]
    assert ExitCode.DONE not in codes
    assert ExitCode.CRASH not in codes


def test_a_closed_pipe_is_not_an_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "smallbench.jobs.cli", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == ExitCode.CRASH


# The console script


def test_help_is_answered_without_heavy_packages_and_every_job_runs_as_a_module() -> None:
    """For torchrun: `python -m smallbench.jobs.NAME` is `smallbench NAME`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NOTHING_HEAVY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in cli.JOBS:
        assert done.stdout.count(f"\nusage: smallbench {name}") == 2


def test_the_overview_names_every_job() -> None:
    page = smallbench("--help")
    assert page.stderr == ""
    for name, summary in cli.JOBS.items():
        assert f"  {name} " in page.stdout
        assert summary in page.stdout
    assert smallbench().stdout == page.stdout
    script = Path(sys.executable).with_name("smallbench")
    if script.exists():
        done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout == page.stdout


def test_help_may_be_asked_for_by_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for words, same in ((["help"], ["--help"]), (["help", "plan"], ["plan", "--help"])):
        assert cli.main(words) == cli.main(same) == ExitCode.DONE
        page = capsys.readouterr().out
        assert page[: len(page) // 2] == page[len(page) // 2 :]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepair"], "unknown job 'prepair'; did you mean 'prepare'?"),
        (["zzz"], "unknown job 'zzz'; known: "),
        (["--out=x", "prepare"], "'--out=x' before a job"),
        (["base"], "unknown job 'base'"),
        (["prepare.run"], "unknown job 'prepare.run'; did you mean 'prepare'?"),
    ],
)
def test_an_unknown_job_is_refused(words: list[str], message: str) -> None:
    done = smallbench(*words, code=ExitCode.USAGE)
    assert done.stderr.startswith(f"smallbench: {message}")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "mistake",
    [
        ["--vocb_size=100"],
        ["word"],
        ["run"],
        ["--", "--trace"],
        ["-"],
        ["--vocab_size=1e4"],
        ["--out=elsewhere"],
        ["--workers"],
    ],
)
def test_a_mistyped_flag_starts_nothing(
    tmp_path: Path, mistake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("One document.\n\nAnother one.\n" * 50)
    line = ["prepare", "--corpus=text.txt", "--out=new", *mistake]
    done = smallbench(*line, code=ExitCode.USAGE)
    assert done.stderr.startswith("smallbench prepare: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_variables_count_in_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLBENCH_JSON", "true")
    done = smallbench("doctor", "--dry_run", "--network")
    assert yaml.safe_load(done.stdout).items() >= {"json": True, "network": True}.items()
    monkeypatch.setenv("SMALLBENCH_JSNO", "true")
    wrong = smallbench("doctor", "--dry_run", code=ExitCode.CONFIG)
    assert "did you mean 'SMALLBENCH_JSON'?" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "ablate colect s3://a --out=o",
            "unknown action 'colect' of 'ablate'; did you mean 'collect'",
        ),
        ("k8s statsu --run=a", "did you mean 'status'"),
        ("checkpoints lst runs/a", "did you mean 'list'"),
        ("k8s --run=a", "'k8s' needs an action: render, submit, status, logs, cancel"),
        ("ablate bert-tiny collectors --data=c", "--flops is missing"),
    ],
)
def test_a_mistyped_action_is_named_with_the_nearest_one(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == ExitCode.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("leaderboard --results=a --submissions=b", "--results and --submissions contradict each"),
        ("quickstart --corpus_documents=0", "--corpus_documents=0 is out of range"),
    ],
)
def test_unusable_flags_are_refused_before_anything_is_printed(line: str, message: str) -> None:
    done = smallbench(*line.split(), code=ExitCode.USAGE)
    assert message in done.stderr
    assert done.stdout == ""


# The contract of every job: a new row of the table is tested by standing there


@pytest.mark.parametrize("name", cli.JOBS)
class TestEveryJob:
    def test_stands_in_its_module(self, name: str) -> None:
        job = cli.load(name)
        assert job.name == name
        assert import_module(f"smallbench.jobs.{name}").__doc__
        assert cli.JOBS[name]

    def test_has_options_that_explain_themselves(self, name: str) -> None:
        job = cli.load(name)
        shared = {f.name for f in fields(Shared)} | {"help"}
        for field in fields(job.options):
            assert field.metadata.get("help"), f"{field.name} has no help"
            assert "." not in field.name
            assert field.name not in shared
        assert {f.name for f in fields(job.options)} >= set(job.words)

    def test_has_configuration_keys_that_explain_themselves(self, name: str) -> None:
        config = cli.named_config(cli.load(name), ())
        keys = {} if config is None else keys_of(config)
        assert {key for key, about in keys.items() if not about.help} <= {"recipe"}

    def test_lists_its_words_as_its_usage_does(self, name: str) -> None:
        job = cli.load(name)
        for each in (job, *job.actions.values()):
            page = cli.manual(each)
            places = [page.find(f"\n  {word.upper()} ") for word in each.words]
            assert each.run is None or places == sorted(places)

    def test_has_examples_that_parse(self, name: str) -> None:
        job = cli.load(name)
        assert job.examples
        for example in job.examples:
            words = words_of(example)
            assert words[0] == name
            _, _, config = cli.resolve(*chosen(job, words[1:]), {})
            if config is not None:
                assert set(job.shortcuts.values()) <= set(keys_of(config))

    def test_has_a_page_of_help_that_fits_a_terminal(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        job = cli.load(name)
        page = cli.manual(job, cli.named_config(job, ()))
        for field in fields(job.options):
            assert f"--{field.name}" in page or word_of(field) in page
        for example in job.examples:
            assert f"  {example}" in page
        long = [line for line in page.splitlines() if len(line) > 80 and "smallbench " not in line]
        assert long == []

    def test_touches_nothing_on_a_dry_run(
        self,
        name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        example = words_of(cli.load(name).examples[0])
        assert cli.main([*example, "--dry_run"]) == 0
        assert list(tmp_path.iterdir()) == []
        printed = capsys.readouterr().out
        # What it prints is a --config file that says the same.
        (tmp_path / "all.yaml").write_text(printed)
        job, _ = chosen(cli.load(name), example[1:])
        assert cli.main([*job.name.split(), "--config=all.yaml", "--dry_run"]) == 0
        assert capsys.readouterr().out == printed

    def test_refuses_a_mistyped_flag(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        job = cli.load(name)
        monkeypatch.setattr(cli, "load", lambda _: replace(job, run=never))
        example = words_of(job.examples[0])
        assert cli.main([*example, "--no_such_flag=1"]) == ExitCode.USAGE
        if name not in {"report", "ablate"}:  # any number of runs, of variants
            assert cli.main([*example, "word", "another"]) == ExitCode.USAGE


def test_printed_commands_survive_a_shell() -> None:
    line = command("glue", "show", "my résults", model="a b", out="it's")
    assert shlex.split(line) == [
        "smallbench",
        "glue",
        "show",
        "my résults",
        "--model=a b",
        "--out=it's",
    ]
    assert command("export", run="runs/a", out="s3://b/c") == (
        "smallbench export --run=runs/a --out=s3://b/c"
    )


def test_prepare_takes_a_data_set_of_a_local_path(tmp_path: Path, capsys) -> None:
    """Its name contains `:/`, but it is not a storage's URL."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"body": "text"}\n')
    corpus = f"--corpus=hub:{tmp_path}/data"
    assert cli.main(["prepare", corpus, f"--out={tmp_path}/out", "--workers=1"]) == 65
    assert "has no column 'text', only body" in capsys.readouterr().err
