"""Interrupted, sharded and shared runs of a protocol give the same result."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from smallbench.errors import ConfigError, DataError, InterruptedRunError
from smallbench.files import try_lock
from smallbench.glue import grid
from smallbench.glue.choice import choice_rows
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.grid import GridRun, measure, plan_task, run_grid, shard_of
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.protocols import PROTOCOLS, summarize
from smallbench.glue.results import merge_runs, read_runs, run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from smallbench.stop import Stop

QUICK = FinetuneConfig(epochs=1, max_train_examples=128, precision="fp32")
SHORT = {"protocol": "robust-v1", "learning_rates": (3e-3, 1e-2), "seeds": (1, 2)}
NAMES = ("cola", "rte", "stsb")
SMALLBENCH = Path(sys.executable).with_name("smallbench")


@pytest.fixture(scope="module")
def encoder(model):
    return PretrainedEncoder(str(model))


@pytest.fixture(scope="module")
def data(glue):
    return [load_task(TASKS[name], glue) for name in NAMES]


@pytest.fixture(scope="module")
def whole(encoder, data, tmp_path_factory):
    """All runs, made in one go."""
    out = tmp_path_factory.mktemp("whole")
    measure(encoder, data, QUICK, **SHORT, out=out)
    return out


def tree(out):
    """Every byte below `runs/` except timings."""
    files = [path for path in (out / "runs").rglob("*") if path.is_file()]
    return {p.relative_to(out): p.read_bytes() for p in files if p.name != "timing.json"}


def test_a_task_chooses_before_its_seeds_and_paper_tries_everything():
    plan = plan_task(TASKS["mnli"], PROTOCOLS["robust-v1"])
    assert [(run.split, run.learning_rate, run.seed) for run in plan] == [
        *(("choice", rate, 0) for rate in (5e-5, 1e-4, 2e-4, 3e-4)),
        *(("dev", None, seed) for seed in (1, 2, 3)),
    ]
    trials = plan_task(TASKS["rte"], PROTOCOLS["paper"])
    assert len(trials) == len(set(trials)) == 20
    assert {run.split for run in trials} == {"dev"}
    (quick,) = plan_task(TASKS["rte"], PROTOCOLS["robust-v1"], learning_rates=[3e-4], seeds=[7])
    assert quick == GridRun("rte", "dev", 3e-4, 7), "one rate leaves nothing to choose"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_shards_have_every_run_once_and_what_chooses_together(protocol, count):
    plan = [run for task in TASKS.values() for run in plan_task(task, PROTOCOLS[protocol])]
    cost = {name: (position + 1) ** 3 for position, name in enumerate(TASKS)}
    shards = [shard_of(plan, cost, number=k + 1, count=count) for k in range(count)]
    assert Counter(run for shard in shards for run in shard) == Counter(plan)
    loads = [sum(cost[run.task] for run in shard) for shard in shards]
    largest = max(cost.values())
    if PROTOCOLS[protocol].chooses_rate:
        homes = {task: {k for k, shard in enumerate(shards) for run in shard if run.task == task}
                 for task in TASKS}  # fmt: skip
        assert {len(home) for home in homes.values()} == {1}
        largest = max(sum(cost[r.task] for r in plan if r.task == task) for task in TASKS)
    assert max(loads) - min(loads) <= largest


def test_the_choice_is_the_best_on_its_split_and_the_seeds_use_it(whole):
    runs = read_runs(whole)
    assert {run.failed for run in runs} == {True, False}, "something is learned, so seeds differ"
    for name in NAMES:
        of_task = [run for run in runs if run.settings.task == name]
        choice = {r.settings.learning_rate: r.score for r in of_task if r.settings.split != "dev"}
        dev = [run for run in of_task if run.settings.split == "dev"]
        assert len(choice) == len(dev) == 2
        (rate,) = {run.settings.learning_rate for run in dev}
        assert choice[rate] == max(choice.values())
        assert {len(run.splits) for run in of_task} == {1}
    assert (whole / "runs/cola/choice_lr-3e-03_epochs-1_seed-0/choice.tsv").is_file()


@pytest.mark.parametrize("patience", [1, 8, 30])
def test_interrupted_and_resumed_equals_uninterrupted(
    patience, encoder, data, whole, tmp_path, capsys
):
    calls = iter(range(1000))
    with pytest.raises(InterruptedRunError, match="Run the same command to continue"):
        measure(encoder, data, QUICK, **SHORT, out=tmp_path,
                stop=Stop(lambda: next(calls) >= patience))  # fmt: skip
    kept = tree(tmp_path)
    capsys.readouterr()
    results = measure(encoder, data, QUICK, **SHORT, out=tmp_path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert tree(tmp_path) == tree(whole)
    assert kept.items() <= tree(tmp_path).items()
    stored = sum(path.name == "result.json" for path in kept)
    assert [line["was_stored"] for line in lines] == [True] * stored + [False] * (12 - stored)
    assert lines[-1]["eta_seconds"] == 0.0
    assert lines[-1]["run"] == "12/12"
    assert len(results) == 12


def test_shards_with_folders_of_their_own_merge_into_the_same(encoder, data, whole, tmp_path):
    folders = [tmp_path / str(k) for k in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        measure(encoder, data, QUICK, **SHORT, out=folder, shard=(number, 3))
    assert all(0 < len(tree(folder)) < len(tree(whole)) for folder in folders)
    merged = merge_runs(folders, tmp_path / "merged")
    assert tree(tmp_path / "merged") == tree(whole)
    assert summarize(merged) == summarize(read_runs(whole))
    merge_runs(folders, tmp_path / "merged")  # again changes nothing
    assert tree(tmp_path / "merged") == tree(whole)


def test_a_shard_beyond_the_last_task_does_nothing(encoder, data, tmp_path, capsys):
    assert measure(encoder, data, QUICK, **SHORT, out=tmp_path, shard=(4, 4)) == []
    assert "has no work: there are fewer runs than shards" in capsys.readouterr().err


def test_runs_that_differ_are_never_merged(whole, model, data, tmp_path):
    target = tmp_path / "merged"
    merge_runs([whole], tmp_path / "copy")
    path = next((tmp_path / "copy/runs/rte").glob("*/dev.tsv"))
    text = path.read_text()
    first, other = text.splitlines()[1], "0\tentailment"
    if first == other:
        other = "0\tnot_entailment"
    for changed, message in [
        (text.replace(first, other, 1), "same run but differ"),
        (text[: text.rindex("\n99\t") + 1], "has 99 predictions, expected 100"),
        (text[:-3], "truncated"),
    ]:
        path.write_text(changed)
        with pytest.raises(DataError, match=message):
            merge_runs([whole, tmp_path / "copy"], target)
        assert not target.exists()
    other = PretrainedEncoder(str(model), random_init=True)
    run_grid(other, data[:1], QUICK, plan=[GridRun("cola", "dev", 1e-3, 1)],
             out=tmp_path / "other")  # fmt: skip
    with pytest.raises(DataError, match="different models or data"):
        merge_runs([whole, tmp_path / "other"], target)


def test_a_task_is_tokenised_once_for_all_of_its_runs(encoder, data, whole, tmp_path, monkeypatch):
    asked = []
    tokenize_task = grid.tokenize_task
    monkeypatch.setattr(
        grid, "tokenize_task", lambda *a: asked.append(a[1].task.name) or tokenize_task(*a)
    )
    measure(encoder, data, QUICK, **SHORT, out=tmp_path)
    assert asked == list(NAMES)
    measure(encoder, data, QUICK, **SHORT, out=tmp_path)
    assert asked == list(NAMES), "nor at all where everything is stored"


def test_a_run_of_another_worker_is_not_repeated(encoder, data, whole, tmp_path, monkeypatch):
    """It is waited for only when all other runs are done, and its result is used as it is."""
    plan = [GridRun("cola", "dev", 3e-3, seed) for seed in (1, 2)]
    theirs = run_grid(encoder, data[:1], QUICK, plan=plan, out=tmp_path / "theirs")[0]
    lock = tmp_path / "mine" / "locks" / "cola_lr-3e-03_epochs-1_seed-1"
    waits = []

    def they_finish(seconds):
        waits.append(sorted(path.name for path in (tmp_path / "mine/runs/cola").iterdir()))
        merge_runs([tmp_path / "theirs"], tmp_path / "mine")
        other_worker.close()

    monkeypatch.setattr(grid.time, "sleep", they_finish)
    with ExitStack() as other_worker:
        assert other_worker.enter_context(try_lock(lock))
        mine = run_grid(encoder, data[:1], QUICK, plan=plan, out=tmp_path / "mine")
    assert waits == [["lr-3e-03_epochs-1_seed-2"]]
    assert mine[0] == theirs
    assert tree(tmp_path / "mine") == tree(tmp_path / "theirs")


@pytest.mark.slow
def test_workers_on_one_folder_share_the_work(model, glue, tmp_path):
    """Two processes with the same command: each run is made once, and both make some."""
    command = [
        SMALLBENCH, "glue", f"--model={model}", f"--glue={glue}", "--tasks=cola,rte,stsb",
        "--learning_rate=3e-3,1e-2", "--seeds=1,2", "--epochs=1", "--max_train_examples=64",
        "--precision=fp32",
    ]  # fmt: skip
    pair = [
        subprocess.Popen([*command, f"--out={tmp_path}/both"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    lines = [[json.loads(x) for x in text.splitlines() if x[0:1] == "{"] for text in printed]
    assert [len(of_one) for of_one in lines] == [12, 12]
    made = [line for of_one in lines for line in of_one if not line["was_stored"]]
    assert len(made) == 12
    tables = ["".join(x for x in text.splitlines(True) if x[0:1] == "|") for text in printed]
    assert tables[0] == tables[1] != ""


@pytest.mark.parametrize("change", [{"random_init": True}, {"hidden_act": "relu"}])
def test_a_folder_with_results_of_another_model_is_refused_before_the_first_run(
    change, encoder, data, model, tmp_path
):
    cola, stsb = (GridRun(task, "dev", 3e-3, 1) for task in ("cola", "stsb"))
    run_grid(encoder, data, QUICK, plan=[cola], out=tmp_path / "out")
    before = tree(tmp_path / "out")
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    settings = json.loads((copied / "config.json").read_text()) | change
    (copied / "config.json").write_text(json.dumps(settings))
    other = PretrainedEncoder(str(copied), random_init="random_init" in change)
    with pytest.raises(ConfigError, match=r"cola/\S+ has a run with (random_init|files_sha256)="):
        run_grid(other, data, QUICK, plan=[stsb], out=tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_any_encoder_that_transformers_saved_is_measured(model, glue, data, tmp_path):
    """A bare BertModel with its tokenizer: no head, no marker of ours."""
    config = BertConfig(
        vocab_size=PretrainedEncoder(str(model)).config.vocab_size, hidden_size=32,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(1)
    BertModel(config).save_pretrained(tmp_path / "bert")
    PretrainedEncoder(str(model)).tokenizer.save_pretrained(tmp_path / "bert")
    encoder = PretrainedEncoder(str(tmp_path / "bert"))
    runs = measure(encoder, data[:1], QUICK, **SHORT, out=tmp_path / "out")
    summary = summarize(runs)
    assert summary.tasks["cola"].num_runs == 2
    assert summary.departures
    best = summary.tasks["cola"].best.settings
    assert (run_directory(tmp_path / "out", best) / "test.tsv").is_file()


@pytest.mark.slow
@pytest.mark.real_data
def test_real_tasks_in_shards_equal_one_process(encoder, test_data, tmp_path):
    data = [load_task(TASKS[name], test_data / "glue") for name in ("cola", "sst2", "mrpc", "mnli")]
    config = FinetuneConfig(max_train_examples=40, epochs=1, precision="fp32")
    small = [task for task in data if task.task.name != "mnli"]
    measure(encoder, small, config, **SHORT, out=tmp_path / "whole")
    folders = [tmp_path / str(number) for number in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        measure(encoder, small, config, **SHORT, out=folder, shard=(number, 3))
    merge_runs(folders, tmp_path / "merged")
    assert tree(tmp_path / "merged") == tree(tmp_path / "whole")
    for task in data:
        assert len(choice_rows(task.splits["train"])["choice"]) == min(
            len(task.splits["train"]) // 10, 2_000
        )
