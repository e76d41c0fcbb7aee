"""Flags, files and variables become options and a configuration, or are refused by name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallbench.config import to_dict
from smallbench.errors import (
    ConfigError,
    ExitCode,
    SmallbenchError,
    UsageError,
)
from smallbench.jobs import base, cli
from smallbench.jobs.cli import as_yaml, changes_as_yaml
from tests.jobs.example_job import JOB, NEEDED, Config, Optim, Options, resolve, words_of


def test_words_that_are_left_go_to_an_option_that_takes_several() -> None:
    job = replace(JOB, words=("recipe", "tasks"))
    assert resolve("small cola mnli qqp --out=o", job)[0].tasks == ("cola", "mnli", "qqp")
    assert resolve("small cola --out=o", job)[0].tasks == ("cola",)
    assert resolve("small --out=o", job)[0].tasks == ()
    with pytest.raises(UsageError, match="tasks is given twice"):
        resolve("small cola mnli --tasks=qqp --out=o", job)


# Values are read by their annotation


@pytest.mark.parametrize("text", ["1.10", "1e5", "12e3456", "a,b", "None", "{x: 1}", "[1]", "-1"])
@pytest.mark.parametrize("form", ["--note={}", "--note {}"])
def test_text_stays_text(text: str, form: str) -> None:
    options, _ = resolve(f"{NEEDED} {form.format(shlex.quote(text))}")
    assert options.note == text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("", True),
        ("--resume", True),
        ("--resume=true", True),
        ("--resume false", False),
        ("--resume=False", False),
        ("--resume no", False),
        ("--resume=0", False),
    ],
)
def test_false_is_false(line: str, value: bool) -> None:
    assert resolve(f"{NEEDED} {line}")[0].resume is value


def test_a_flag_may_be_written_in_all_common_ways() -> None:
    expected = resolve("small --out=o --seed=3 --tasks=a,b --mode=must --optim.warmup_steps=5")
    same = resolve("--seed 3 --mode must --tasks a,b small --optim.warmup-steps 5 --out o")
    assert same == expected
    options, config = expected
    assert options == Options("small", Path("o"), seed=3, tasks=("a", "b"), mode="must")
    assert config == Config(optim=Optim(warmup_steps=5))


def test_the_recipe_may_be_a_word_or_a_flag() -> None:
    assert resolve("deep --out=o") == resolve("--recipe=deep --out=o")
    assert resolve("deep --out=o")[1].layers == 12


def test_the_value_of_a_flag_may_hold_what_looks_like_fire_or_shell() -> None:
    text = "-- --trace = - $x\nnext"
    assert resolve(f"{NEEDED} --note={shlex.quote(text)}")[0].note == text


# What does not fit is refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sed=3", r"unknown --sed; did you mean '--seed'\?"),
        ("--dryrun", r"unknown --dryrun; did you mean '--dry_run'\?"),
        ("--out_dir=x", r"unknown --out_dir; did you mean '--out'\?"),
        ("--learning_rate=1", r"unknown --learning_rate; did you mean '--optim\.learning_rate'\?"),
        ("--optim.learning_rat=1", r"did you mean '--optim\.learning_rate'\?"),
        ("--optim.lr=1", r"unknown --optim\.lr; did you mean '--optim\.learning_rate'\?"),
        ("--optim.rho=1", r"unknown --optim\.rho; known: --optim\.learning_rate, --optim\.warmup_"),
        ("--lr=1", r"unknown --lr; did you mean '--optim\.learning_rate'\?"),
        ("--fp16", r"unknown --fp16; known: --config, "),  # what it stands for is not a key here
        ("--optim=1", r"unknown --optim; "),
        ("--zzz", r"unknown --zzz; known: --config, --dry_run, --layers, --max_steps, --mode, "),
        ("--noresume", r"unknown --noresume; did you mean '--resume'\?"),
        ("word", r"stray word 'word'"),
        ("run", r"stray word 'run'"),
        ("--resume small", r"Invalid value for --resume: 'small' \(expected true or false\)"),
        ("__class__", r"stray word '__class__'"),
        ("-1", r"stray word '-1'"),
        ("-", r"stray '-'"),
        ("--", r"stray '--'"),
        ("-- --trace", r"stray '--'"),
        ("-- --interactive", r"stray '--'"),
        ("--note -", r"stray '-'"),
        ("-s 3", r"stray '-s'"),
        ("-seed=3", r"stray '-seed=3'"),
        ("---seed=3", r"stray '---seed=3'"),
        ("--=3", r"stray '--=3'"),
        ("--seed=1 --seed=2", r"--seed is given twice"),
        ("--optim.warmup-steps=1 --optim.warmup_steps=2", r"--optim\.warmup_steps is given twice"),
        ("--recipe=deep", r"recipe is given twice: 'small' and --recipe"),
        ("--seed", r"--seed needs a value: --seed=int"),
        ("--note --seed=3", r"--note needs a value: --note=str"),
        ("--seed=1e5", r"Invalid value for --seed: '1e5' \(expected an integer\)"),
        ("--seed=1.0", r"Invalid value for --seed: '1\.0'"),
        ("--mode=Must", r"--mode: 'Must' \(expected one of must, allow\)"),
        (
            "--optim.learning_rate=nan",
            r"--optim\.learning_rate: 'nan' \(expected a finite number\)",
        ),
        ("--optim.learning_rate", r"--optim\.learning_rate needs a value"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(f"{NEEDED} {line}")
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("small", r"--out is missing \(where to write\); for example: smallbench pretrain small"),
        ("--out=o", "RECIPE is missing"),
        ("small --ouy=o", r"unknown --ouy; did you mean '--out'"),
        ("--out=o --optim.lr=1", r"unknown --optim\.lr"),
    ],
)
def test_mistyped_flags_are_reported_before_missing_ones(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(line)


@pytest.mark.parametrize(
    ("line", "variables", "message"),
    [
        ("small --optim.learning_rate=-1", {}, "--optim.learning_rate=-1 is out of range"),
        ("small --tasks=a,b,a", {}, "--tasks=a,b,a is out of range; expected at least one"),
        ("small --max_steps=1_001", {}, "--max_steps=1_001 is out of range; expected [0, 1000]"),
        ("small --steps=+2000", {}, "--steps=+2000 is out of range; expected [0, 1000]"),
        ("--recipe=Deep", {}, "Invalid value for --recipe: 'Deep' (expected lower case)"),
        ("Deep", {}, "Invalid value for RECIPE: 'Deep' (expected lower case)"),
        ("small", {"OPTIM__LEARNING_RATE": "-1"}, "SMALLBENCH_OPTIM__LEARNING_RATE=-1 is out of"),
        ("small --config=a.yaml", {}, "a.yaml: tasks=a,a is out of range; expected at least one"),
    ],
)
def test_a_value_out_of_range_is_shown_as_it_was_typed(
    line: str, variables: dict[str, str], message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("tasks: [a, a]\n")
    variables = {f"SMALLBENCH_{name}": value for name, value in variables.items()}
    code = ExitCode.USAGE if "--" in message or "RECIPE" in message else ExitCode.CONFIG
    with pytest.raises(SmallbenchError, match=re.escape(message)) as caught:
        resolve(f"{line} --out=o", **variables)
    assert caught.value.exit_code is code


def test_a_value_that_only_the_recipe_gives_is_not_called_a_flag() -> None:
    job = replace(JOB, config=lambda options: Config(optim=Optim(learning_rate=-1.0)))
    with pytest.raises(ConfigError, match=r"^optim\.learning_rate=-1\.0 is out of range"):
        resolve(f"{NEEDED} --optim.learning_rate=1", job)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--optim.matrix_scale=1",
            "--optim.matrix_scale belongs to --optim.optimizer=muon, but this run uses adamw",
        ),
        ("--optim.optimizer=muon --optim.matrix_scales=1", "did you mean '--optim.matrix_scale'?"),
        (
            "--schedule.schedule=constant --schedule.final_rate=0",
            "--schedule.schedule=cosine, but this run uses constant",
        ),
    ],
)
def test_a_key_of_another_choice_names_that_choice(
    flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"pretrain bert-tiny --data=c --run_dir=r {flag} --dry_run"
    assert cli.main(line.split()) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_values_that_contradict_each_other_are_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="warmup_steps 10 > max_steps 5"):
        resolve(f"{NEEDED} --max_steps=5")
    assert resolve(f"{NEEDED} --max_steps=5 --optim.warmup_steps=1")[1].max_steps == 5
    with pytest.raises(ConfigError, match="unknown recipe 'smal'"):
        resolve("smal --out=o")


# Layers


@pytest.fixture
def no_other_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "JOBS", {"pretrain": ""})


@pytest.mark.usefixtures("no_other_job")
def test_recipe_then_file_then_variable_then_flag(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "note: file\nseed: 2\ntasks: [a, b]\n"
        "optim:\n  learning_rate: 1e-4\n  warmup_steps: 7\nlayers: 7\nmax_steps: 70\n"
    )
    variables = {
        "SMALLBENCH_SEED": "3",
        "SMALLBENCH_OPTIM__WARMUP_STEPS": "8",
        "SMALLBENCH_LAYERS": "8",
        "SMALLBENCH_OUT": "variable",
        "SMALLBENCH_CONFIG": str(file),
    }
    options, config = resolve("deep --layers=9", **variables)
    assert options == Options("deep", Path("variable"), note="file", seed=3, tasks=("a", "b"))
    assert config == Config(layers=9, max_steps=70, optim=Optim(1e-4, 8))


def test_a_shortcut_has_the_rank_of_its_layer(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_steps: 70\n")
    (tmp_path / "b.yaml").write_text("steps: 70\n")
    (tmp_path / "c.yaml").write_text("steps: null\nmax_steps: 70\n")
    steps = {
        "--steps=100 --config=a.yaml": 100,
        "--max_steps=30 --config=b.yaml": 30,
        "--config=c.yaml": 70,
        "--config=b.yaml": 70,
        "": 100,
    }
    for line, expected in steps.items():
        line = line.replace("--config=", f"--config={tmp_path}/")
        assert resolve(f"{NEEDED} {line}")[1].max_steps == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed: 3", "a.yaml: unknown sed; did you mean 'seed'"),
        ("optim: {learning_rat: 3}", r"unknown optim\.learning_rat; did you mean 'optim\.learn"),
        ("optim: 3", "unknown optim"),
        ("note: 1.10", r"a\.yaml: Invalid value for note: 1\.1 \(expected text\)"),
        ("resume: 'perhaps'", "a.yaml: Invalid value for resume: 'perhaps'"),
        ("config: b.yaml", "a.yaml: unknown config"),
        ("- a", "expected 'key: value' lines"),
        ("a: [", "cannot be read: "),
        ("\xff", "expected 'key: value' lines"),
    ],
)
def test_a_file_that_does_not_fit_is_a_wrong_configuration(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(f"{NEEDED} --config={tmp_path}/a.yaml")
    assert caught.value.exit_code is ExitCode.CONFIG
    assert "\n" not in str(caught.value) or content == "a: ["


def test_a_missing_or_binary_file_is_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            resolve(f"{NEEDED} --config={tmp_path}/{name}")


@pytest.mark.usefixtures("no_other_job")
def test_a_variable_that_fits_nothing_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="unknown SMALLBENCH_SEDE; did you mean 'SMALLBENCH_SEED"):
        resolve(NEEDED, SMALLBENCH_SEDE="1")
    with pytest.raises(ConfigError, match="did you mean 'SMALLBENCH_OPTIM__LEARNING_RATE'"):
        resolve(NEEDED, SMALLBENCH_OPTIM__LEARNING_RATES="1")
    with pytest.raises(ConfigError, match="Invalid value for SMALLBENCH_SEED: 'x'"):
        resolve(NEEDED, SMALLBENCH_SEED="x")


@pytest.mark.usefixtures("no_other_job")
def test_variables_of_other_programs_are_not_options() -> None:
    resolve(NEEDED, SMALLBENCH_TEST_DATA="x", SMALLBENCHES="y", OTHER="z")


def test_a_variable_of_another_job_is_left_to_it() -> None:
    resolve(NEEDED, SMALLBENCH_JSON="true")  # doctor's
    resolve(NEEDED, SMALLBENCH_CACHE="x")  # prepare's, and read wherever a corpus is pulled


def test_a_dry_run_says_what_would_run() -> None:
    options, config = resolve("deep --out=o --seed=3 --steps=70")
    data: Mapping[str, Any] = yaml.safe_load(as_yaml(JOB, options, config))
    expected = {**to_dict(options), **to_dict(config)}
    assert data == {key: value for key, value in expected.items() if key != "steps"}
    assert data["max_steps"] == 70


def test_a_job_prints_what_differs_from_its_recipe_and_where_the_rest_is(tmp_path: Path) -> None:
    job = replace(JOB, record="{out}/run.json")
    line = "deep --out=o --tasks=a,b --steps=70 --optim.warmup_steps=5"
    options, config = resolve(line, job)
    printed = changes_as_yaml(job, options, config)
    assert (
        printed.splitlines()[0] == "# smallbench pretrain; all values: --dry_run, and in o/run.json"
    )
    assert yaml.safe_load(printed) == {
        "recipe": "deep", "out": "o", "tasks": ["a", "b"], "max_steps": 70,
        "optim.warmup_steps": 5,
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(printed)
    assert resolve(f"--config={tmp_path}/a.yaml", job) == (replace(options, steps=None), config)


@pytest.mark.parametrize("job", ["pretrain", "plan", "quickstart", "enter"])
def test_one_value_has_one_name_in_what_a_dry_run_prints(job: str, tmp_path: Path) -> None:
    """A user can edit a printed value: it has no second name in the output."""
    loaded = cli.load(job)
    for short, key in loaded.shortcuts.items():
        value, other = {
            "max_steps": ("7", 9),
            "max_hours": ("2.5", 3.5),
            "engine": ("torch", "auto"),
            "offload": ("none", "auto"),
            "init_from": ("runs/a", "runs/b"),
            "flops": ("1e12", 2e12),
            "seed": ("7", 9),
        }[short]
        words = words_of(loaded.examples[0])[1:]
        _, options, config = cli.resolve(loaded, [*words, f"--{short}={value}"], {})
        printed = as_yaml(loaded, options, config)
        assert short not in yaml.safe_load(printed)
        edited = yaml.safe_load(printed)
        section, name = key.split(".")
        assert edited[section][name] != other
        edited[section][name] = other
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(edited))
        _, _, config = cli.resolve(loaded, [f"--config={tmp_path}/a.yaml"], {})
        assert getattr(getattr(config, section), name) == other


@pytest.mark.parametrize(
    ("file", "line", "value"),
    [
        ("", "--steps=10 --max_steps=20", None),
        ("steps: 10\nmax_steps: 20\n", "", None),
        ("", "--steps=20 --max_steps=20", 20),
        ("max_steps: 20\n", "--steps=30", 30),
        ("steps: 20\n", "--max_steps=30", 30),
        ("max_steps: 20\n", "--steps=none", 100),  # the recipe's
        ("steps: null\nmax_steps: 20\n", "", 20),
    ],
)
def test_one_setting_never_gets_two_values_from_one_place(
    file: str, line: str, value: int | None, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(file or "seed: 1\n")
    line = f"{NEEDED} --config={tmp_path}/a.yaml {line}"
    if value is None:
        with pytest.raises(SmallbenchError, match=r"steps=10 and .*max_steps=20 give one setting"):
            resolve(line)
    else:
        assert resolve(line)[1].max_steps == value


@pytest.mark.parametrize("line", ["pretrain bert-tiny --data=c --run_dir=r", "plan bert-tiny"])
def test_offload_none_is_a_choice_and_no_absence(line: str) -> None:
    name, *arguments = line.split()
    job = cli.load(name)
    for word in ("none", "optimizer"):
        _, _, config = cli.resolve(job, [*arguments, f"--offload={word}"], {})
        assert config.train.offload == word
    _, options, config = cli.resolve(job, arguments, {})
    assert (options.offload, config.train.offload) == (None, "auto")


@pytest.mark.parametrize(
    "text",
    ["max_steps: 1\nmax_steps: 2\n", "sub: {rate: 1}\nsub.rate: 2\n", "sub: {rate: 1, rate: 2}\n"],
)
def test_one_key_twice_in_a_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="given twice"):
        resolve(f"{NEEDED} --config={tmp_path}/a.yaml")


def test_a_file_that_is_nested_too_deeply_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: " + "[" * 1500)
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(f"{NEEDED} --config={tmp_path}/a.yaml")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--storage=s3://", "the bucket is missing"),
        ("--storage=", "is empty"),
        ("--storage=s3:/lab/runs", "not a storage's URL"),
        ("--storage=S3://lab", "not a storage's URL"),
        ("--storage=file:", "not a storage's URL"),
        ("--data=gs://lab/corpus", "not a storage's URL"),
        ("--data=s3://lab//corpus", "has an empty part"),
        ("--data=hub:org/name", "names a data set of the hub"),
        ("--run_dir=s3://lab/run", "'s3://lab/run' looks like a URL; expected a local path"),
        ("--endpoint_url=localhost:9000", "expected https://HOST"),
    ],
)
def test_a_value_like_a_url_is_a_valid_url_in_every_flag(
    flag: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"--data": "--data=corpus", "--run_dir": "--run_dir=run"}
    flags[flag.partition("=")[0]] = flag
    assert cli.main(["pretrain", "bert-tiny", *flags.values()]) == 78
    said = capsys.readouterr().err
    assert words in said
    assert flag.partition("=")[0] in said
    assert list(tmp_path.iterdir()) == []
