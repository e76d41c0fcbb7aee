"""Paths and counts: one law each for every flag of every job."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path

import pytest

from smallbench.config import Location, annotations_of, keys_of
from smallbench.errors import ConfigError, SmallbenchError, UsageError
from smallbench.jobs.base import JOBS, Job, chosen, load
from smallbench.jobs.cli import main
from smallbench.jobs.resolve import resolve


def members(annotation: object) -> set[object]:
    """The types that a value or its parts may have."""
    inner = typing.get_args(annotation)
    return {annotation} | {part for each in inner for part in members(each)}


EVERY = {job.name: job for name in JOBS for job in (load(name), *load(name).actions.values())}
"""The jobs and their actions."""


def example_of(job: Job) -> list[str]:
    name, *words = shlex.split(job.examples[0])[1:]
    return chosen(load(name), words)[1] if job.run else []


@pytest.mark.parametrize("name", EVERY)
def test_no_flag_takes_a_negative_count_or_one_that_no_machine_has(name: str) -> None:
    job, example = EVERY[name], example_of(EVERY[name])
    _, _, config = resolve(job, example, {})
    keys = annotations_of(job.options) | (
        {key: k.annotation for key, k in keys_of(config).items()} if config is not None else {}
    )
    counts = [key for key, annotation in keys.items() if int in members(annotation)]
    for key in counts:
        words = [word for word in example if not word.startswith(f"--{key}=")]
        with pytest.raises((UsageError, ConfigError), match=key.rpartition(".")[2]):
            resolve(job, [*words, f"--{key}=-1"], {})
        with pytest.raises((UsageError, ConfigError), match=key.rpartition(".")[2]):
            resolve(job, [*words, f"--{key}={10**20}"], {})


@pytest.mark.parametrize("name", EVERY)
def test_every_path_flag_takes_home_folders_spaces_and_any_letters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job, example = EVERY[name], example_of(EVERY[name])
    for key, annotation in annotations_of(job.options).items():
        if not members(annotation) & {Path, Location}:
            continue
        words = [word for word in example if not word.startswith(f"--{key}=")]
        try:
            _, options, _ = resolve(job, [*words, f"--{key}=~/größe 1/ü"], {})
        except SmallbenchError:  # a flag that needs another one, or excludes it
            continue
        value = getattr(options, key)
        (path,) = value if isinstance(value, tuple) else (value,)
        assert str(path) == "/home/me/größe 1/ü"


MISSING = {
    "pretrain bert-tiny --data={} --run_dir=r": 65,
    "export --run={} --out=e": 65,
    "prepare --corpus={} --out=c": 65,
    "finetune --model=m --task=rte --glue={} --out=f": 65,
    "glue --model=. --glue={} --out=g": 65,
    "glue show {}": 65,
    "report {} --out=r.html": 65,
    "checkpoints list {}": 65,
    "leaderboard validate {}": 65,
    "plan bert-tiny --config={}": 78,
    "pretrain {}/idea.py:recipe --data=c --run_dir=r": 78,
}


@pytest.mark.parametrize("line", MISSING)
def test_a_missing_folder_is_called_missing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "no such földer"
    code = main([word.format(place) for word in line.split()])
    said = capsys.readouterr().err
    assert code == MISSING[line], said
    assert str(place) in said
    assert any(word in said for word in ("does not exist", "missing", "No such file")), said
    assert list(tmp_path.iterdir()) == []


def test_several_tasks_for_finetune_are_sent_to_glue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--model=m", "--task=cola,rte", "--glue=g", "--out=o"]) == 2
    assert "for several: smallbench glue --tasks=cola,rte" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["export --run=~nobody-here/r --out=o", "plan --config=~nobody-here/a"]
)
def test_the_home_of_an_unknown_user_is_one_sentence(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) in {2, 78}
    assert "~ cannot be expanded" in capsys.readouterr().err
