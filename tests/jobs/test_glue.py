"""Flags of the glue job: those that each action needs, and the shard of a pod."""

import sys
from pathlib import Path

import numpy as np
import pytest

from smallbench import plugins
from smallbench.errors import ConfigError, UsageError
from smallbench.export.huggingface import export
from smallbench.glue.results import read_runs, run_directory, write_run
from smallbench.jobs.base import chosen
from smallbench.jobs.cli import main
from smallbench.jobs.glue import JOB, Options, run
from smallbench.jobs.resolve import resolve
from smallbench.pretraining.pretrain import pretrain
from tests.glue.runs import run_of
from tests.pretraining.test_recipes import small

pytestmark = pytest.mark.usefixtures("quick_runs")

MEASURE = {"model": "m", "glue": "g", "out": "o"}


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("glue --glue=g --out=o", "--model"),
        ("glue measure --model=m --glue=g", "--out"),
        ("glue show", "DIR"),
        ("glue merge a,b", "--out"),
        ("glue merge --out=glue", "DIR,… is missing"),
        ("glue submit-file --out=glue.zip", "DIR"),
        ("glue check-file", "ZIP"),
        ("glue show a b", "stray word 'b'"),
        ("glue shwo a", "unknown action 'shwo' of 'glue'; did you mean 'show'?"),
        ("glue show a --seeds=1", "unknown --seeds"),
    ],
)
def test_every_action_has_its_own_flags_and_names_missing_ones(line, missing, capsys):
    assert main(line.split()) == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize("name", JOB.actions)
def test_every_action_has_its_own_help(name, capsys):
    action = JOB.actions[name]
    assert main(["glue", name, "--help"]) == 0
    page = capsys.readouterr().out
    assert action.doc.partition("\n")[0] in " ".join(page.split())
    words = {"show": "DIR", "merge": "DIR,…", "submit-file": "DIR", "check-file": "ZIP"}
    assert f"usage: smallbench {action.name} {words.get(name, '[')}" in page
    for example in action.examples:
        assert example in page
        job, words = chosen(JOB, example.split()[2:])
        assert job.options is action.options
        resolve(job, words, {})


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
        ({"shard": "0/8"}, None, "Invalid --shard=0/8"),
        ({"shard": "9/8"}, None, "Invalid --shard=9/8"),
        ({"shard": "three"}, None, "--shard=three: expected K/N"),
        ({"shard": "-1/2"}, None, "--shard=-1/2"),
        ({"num_shards": 8}, None, "goes with JOB_COMPLETION_INDEX"),
        ({"num_shards": 8}, "8", "Invalid --shard=9/8"),
        ({"num_shards": 8, "shard": "1/8"}, "0", "give one of them"),
    ],
)
def test_an_invalid_shard_starts_nothing(flags, index, message, monkeypatch):
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


def stored_step(out, step, seed):
    name = f"m (run a1, step {step})"
    run = run_of(score=step / 10, seed=seed, model=name, model_sha256=str(step))
    directory = run_directory(out / f"step-{step:010d}", run.settings)
    write_run(directory, run, {"dev": np.resize([0, 1], 100)})


def test_scores_of_steps_are_shown_and_merged_as_a_table_of_steps(tmp_path, capsys):
    for step, seed in ((1, 1), (1, 2), (2, 1)):
        stored_step(tmp_path / f"shard{seed}", step, seed)
    rows = ["| 1 | 10.00 | 10.00 |", "| 2 | 20.00 | 20.00 |"]
    assert main(["glue", "show", f"{tmp_path}/shard1"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == rows
    merged = tmp_path / "merged"
    assert main(["glue", "merge", f"{tmp_path}/shard1,{tmp_path}/shard2", f"--out={merged}"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == rows
    assert [len(read_runs(merged / f"step-{step:010d}")) for step in (1, 2)] == [2, 1]


@pytest.mark.parametrize(
    ("out", "steps", "hint"),
    [
        ("o", (), "smallbench glue merge DIR,DIR,… --out=DIR --protocol=tiny-v1"),
        ("o", (1,), "smallbench glue merge DIR,DIR,… --out=DIR --protocol=tiny-v1"),
        ("s3://lab/o", (), "smallbench glue show s3://lab/o --protocol=tiny-v1"),
    ],
)
def test_a_shard_names_the_command_that_scores_all_by_its_protocol(
    out, steps, hint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("smallbench.jobs.glue.measure_model", lambda *args, **kwargs: ([], None))
    monkeypatch.setattr("smallbench.checkpoints.store.CheckpointStore.require", lambda *args: None)
    (tmp_path / "run.json").touch()
    flags = {"model": str(tmp_path), "glue": "g", "out": out, "protocol": "tiny-v1"}
    run(Options(**flags, shard="1/2", steps=steps or None, tracker="wandb"))
    said = capsys.readouterr()
    assert said.out == f"When all shards are done: {hint}\n"
    what = "--steps" if steps else "a shard"
    assert said.err.startswith("--tracker=wandb can only show the whole table of a model")
    assert said.err.endswith(f"nothing of {what}\n")


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    """A run of three steps that keeps the first two as well."""
    run_dir = tmp_path_factory.mktemp("pretrained") / "run"
    config = small("bert", train__max_steps=3, train__milestones=(1, 2), train__precision="fp32")
    pretrain(config, data=corpus, run_dir=run_dir)
    return run_dir


QUICK = ("--glue=samples", "--tasks=stsb", "--learning_rate=1e-3", "--seeds=1", "--epochs=1",
         "--max_train_examples=32", "--max_length=32", "--device=cpu")  # fmt: skip


def test_kept_checkpoints_of_a_run_are_scored_as_their_exports_are(pretrained, tmp_path, capsys):
    assert (
        main(["glue", f"--model={pretrained}", f"--out={tmp_path}/way", "--steps=3,1", *QUICK]) == 0
    )
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert main(["glue", "show", f"{tmp_path}/way"]) == 0
    assert capsys.readouterr().out.splitlines()[: len(table)] == table
    assert [row.split("|")[1].strip() for row in table[2:]] == ["1", "3"]
    hashes = set()
    for step in (1, 3):
        export(pretrained, tmp_path / f"export{step}", step=step)
        out = tmp_path / f"out{step}"
        assert main(["glue", f"--model={tmp_path}/export{step}", f"--out={out}", *QUICK]) == 0
        (run,), (along,) = read_runs(out), read_runs(tmp_path / "way" / f"step-{step:010d}")
        assert run == along
        hashes.add(run.settings.model_sha256)
    assert len(hashes) == 2


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_tracker_groups_a_run_and_an_export_in_a_storage_by_the_recipe(
    is_remote, pretrained, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "smallbench.glue.tracking.open_views", lambda config, **given: shown.append(given) or []
    )
    monkeypatch.setattr("smallbench.jobs.glue.require_library", lambda config: None)
    model = f"file://{tmp_path}/export" if is_remote else str(pretrained)
    if is_remote:
        export(pretrained, model)
    flags = (f"--model={model}", f"--out={tmp_path}/out", "--tracker=wandb", *QUICK)
    assert main(["glue", *flags]) == 0
    assert [given["group"] for given in shown] == ["bert-tiny"]


def test_the_files_of_a_tracker_are_below_the_run_that_is_exported(
    pretrained, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "smallbench.export.upload.open_views", lambda config, **given: shown.append(given) or []
    )
    monkeypatch.setattr("smallbench.jobs.export.require_library", lambda config: None)
    assert main(["export", f"--run={pretrained}", f"--out={tmp_path}/out", "--tracker=wandb"]) == 0
    assert [given["folder"] for given in shown] == [pretrained]


@pytest.mark.parametrize("job", ["glue --glue=samples --model", "export --run"])
def test_a_missing_tracker_is_said_before_any_work(job, pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = f"{job}={pretrained} --out={tmp_path}/out --tracker=wandb".split()
    assert main(words) == 69
    assert "this needs wandb; pip install 'smallbench[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_not_kept_is_refused_before_anything_runs(
    pretrained, tmp_path, capsys
):
    code = main(["glue", f"--model={pretrained}", f"--out={tmp_path}/o", "--steps=1,7", *QUICK])
    assert code == 78
    assert "no checkpoint of step 7; it kept: 1, 2, 3" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    with pytest.raises(UsageError, match="--steps names checkpoints of a run"):
        run(Options(**MEASURE, steps=(1,)))


@pytest.mark.parametrize("pooling", [[], pytest.param(["--pooling=mean"], marks=pytest.mark.slow)])
def test_a_run_of_an_architecture_of_ones_own_is_scored_as_its_export(
    pooling, corpus, tmp_path, monkeypatch, capsys
):
    """The run's code is its user's; a folder with code from elsewhere is not run unasked."""
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.setattr(plugins, "_GIVEN", set())
    idea = Path(__file__).parents[1] / "plugins" / "gated_bert.py"
    run_dir, exported = tmp_path / "run", tmp_path / "export"
    tiny = ["--max_steps=1", "--sequence_length=32", "--model.num_hidden_layers=1",
            "--train.global_batch_size=4", "--train.num_eval_rows=4"]  # fmt: skip
    recipe = f"{idea}:gated_bert_tiny"
    assert main(["pretrain", recipe, f"--data={corpus}", f"--run_dir={run_dir}", *tiny]) == 0
    export(run_dir, exported)
    for model, flags in ((run_dir, []), (exported, ["--trust_remote_code"])):
        out = f"--out={tmp_path}/of_{model.name}"
        assert main(["glue", f"--model={model}", out, *QUICK, *pooling, *flags]) == 0
    (native,), (foreign,) = (read_runs(tmp_path / f"of_{name}") for name in ("run", "export"))
    assert native == foreign
    capsys.readouterr()
    assert main(["glue", f"--model={exported}", f"--out={tmp_path}/no", *QUICK]) == 78
    assert "--trust_remote_code" in capsys.readouterr().err
