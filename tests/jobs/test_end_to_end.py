"""Raw text to a leaderboard row, tiny, through the console script, as a user types it."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallbench.glue.samples import write_sample_glue
from tests.command import command as smallbench
from tests.servers.proxy import Stall

pytestmark = pytest.mark.usefixtures("quick_runs")

SMALLBENCH = Path(sys.executable).with_name("smallbench")
TINY = [
    "--sequence_length=32", "--model.hidden_size=32", "--model.intermediate_size=64",
    "--model.embedding_size=16", "--model.num_hidden_layers=1", "--train.global_batch_size=8",
    "--train.num_eval_rows=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with raw text and sample tasks."""
    folder = tmp_path_factory.mktemp("user")
    draw = random.Random(0)
    words = ["the", "of", "a", "small", "large", "model", "reads", "writes", "old", "text", "page"]
    documents = [" ".join(draw.choices(words, k=120)) + "." for _ in range(150)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    write_sample_glue(folder / "glue")
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    out = folder / "corpus"
    done = smallbench(
        "prepare", f"--corpus={folder}/text.txt", f"--out={out}", "--vocab_size=200",
        "--sequence_length=32", "--eval_fraction=0.1", "--workers=1",
    )  # fmt: skip
    assert "smallbench pretrain" in done.stdout, "it says what to type next"
    return out


def test_text_to_table(folder, corpus):
    run, out = folder / "run", folder / "export"
    done = smallbench(
        "pretrain", "bert-tiny", f"--data={corpus}", f"--run_dir={run}", "--max_steps=4", *TINY
    )
    assert "smallbench export" in done.stdout
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {"train", "eval"} == {r["event"] for r in records}
    done = smallbench("export", f"--run={run}", f"--out={out}")
    assert done.stdout.startswith(f"Exported step 4 of {run} to {out}; its outputs differ ")
    done = smallbench(
        "glue", f"--model={out}", f"--glue={folder}/glue", f"--out={folder}/results",
        "--tasks=cola,stsb", "--seeds=1,2", "--epochs=1", "--max_train_examples=64",
    )  # fmt: skip
    assert "CoLA" in done.stdout
    again = [
        json.loads(line)
        for model in (out, run)  # the run itself is the same model: its run is found again
        for line in smallbench(
            "finetune", f"--model={model}", "--task=rte", f"--glue={folder}/glue",
            f"--out={folder}/one", "--epochs=1", "--max_train_examples=64",
        ).stdout.splitlines()
        if line.startswith("{")
    ]  # fmt: skip
    assert [record["was_stored"] for record in again] == [False, True]
    done = smallbench("leaderboard", f"--results={folder}/results")
    assert "ELECTRA-DeBERTa" in done.stdout
    assert "bert-tiny (run" in done.stdout
    assert "*sample*" in done.stdout


def test_corpora_and_exports_go_through_a_storage(folder, corpus, monkeypatch):
    monkeypatch.setenv("SMALLBENCH_CACHE", str(folder / "cache"))
    bucket, run = f"file://{folder}/bucket", folder / "run-for-a-bucket"
    prepare = [
        "prepare", f"--corpus={folder}/text.txt", f"--out={bucket}/corpus", "--vocab_size=200",
        "--sequence_length=32", "--eval_fraction=0.1", "--workers=1",
    ]  # fmt: skip
    assert f"--data={bucket}/corpus" in smallbench(*prepare).stdout
    assert "already prepared" in smallbench(*prepare).stdout
    manifests = [folder / "bucket" / "corpus" / "manifest.json", corpus / "manifest.json"]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    smallbench(
        "pretrain", "bert-tiny", f"--data={corpus}", f"--run_dir={run}", "--max_steps=2", *TINY
    )
    done = smallbench("export", f"--run={run}", f"--out={bucket}/export")
    assert f"--model={bucket}/export" in done.stdout
    done = smallbench(
        "finetune", f"--model={bucket}/export", "--task=rte", f"--glue={folder}/glue",
        f"--out={folder}/from-a-bucket", "--epochs=1", "--max_train_examples=64",
    )  # fmt: skip
    assert '"was_stored": false' in done.stdout


def test_a_run_kept_in_a_storage_outlives_its_machine(folder, corpus):
    """The disk is emptied in the middle of the run; the next machine has only the command line."""
    bucket = f"file://{folder}/bucket"
    smallbench("prepare", f"--corpus={folder}/text.txt", f"--out={bucket}/corpus", "--workers=1",
               "--vocab_size=200", "--sequence_length=32", "--eval_fraction=0.1",
               f"--cache={folder}/cache")  # fmt: skip
    command = [
        "pretrain", "bert-tiny", f"--data={bucket}/corpus", f"--run_dir={folder}/machine/kept",
        f"--storage={bucket}/runs", "--max_steps=6", "--train.save_every_steps=2",
        "--lease_seconds=1", *TINY,
    ]  # fmt: skip
    smallbench(*command)
    shutil.rmtree(folder / "machine")
    for newest in (folder / "bucket" / "runs" / "kept" / "commits").glob("*6.json"):
        newest.unlink()  # as if killed before the last commit
    done = smallbench(*command, "--resume=must")
    assert "continuing from step 4" in done.stderr
    url = f"{bucket}/runs/kept"
    listed = smallbench("checkpoints", "list", url).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["step", "4", "6"]
    assert "step 6: whole" in smallbench("checkpoints", "verify", url).stdout
    smallbench("checkpoints", "pull", url, f"--out={folder}/pulled", "--step=4")
    assert (folder / "pulled" / "commits" / "step-0000000004.json").is_file()
    smallbench("export", f"--run={url}", f"--out={folder}/from-storage")
    assert json.loads((folder / "from-storage" / "smallbench.json").read_text())["step"] == 6
    (engine,) = (folder / "bucket" / "runs" / "kept").glob("checkpoints/*4/*/engine.pt")
    engine.write_bytes(engine.read_bytes()[:-1])
    done = smallbench("checkpoints", "verify", url, code=65)
    assert "1 of 2 checkpoints damaged: step 4" in done.stderr
    assert "nothing" in smallbench("checkpoints", "prune", url).stdout


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_finishes(folder, corpus, number):
    run = folder / f"run-{number.name}"
    command = [
        SMALLBENCH, "pretrain", "bert-tiny", f"--data={corpus}", f"--run_dir={run}",
        "--max_steps=2000", "--train.log_every_steps=1", *TINY,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and '"event": "train"' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command continues" in errors.splitlines()[-1]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert (run / "commits" / f"step-{max(steps):010d}.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [[SMALLBENCH, "pretrain"], [sys.executable, "-m", "smallbench.jobs.pretrain"]],
    ids=["", "-m"],
)
def test_an_upload_under_way_does_not_hold_up_the_exit(
    corpus, tmp_path, moto_bucket, proxy, program
):
    """Otherwise Python would join its threads, for as long as the server is silent."""
    between, errors = proxy(moto_bucket), tmp_path / "errors"
    between.fail(Stall(600), matching=r"PUT .*/engine\.pt")
    command = [
        *program, "bert-tiny", f"--data={corpus}", f"--run_dir={tmp_path}/run",
        f"--storage={moto_bucket.url}", f"--endpoint_url={between.endpoint_url}",
        "--max_steps=100000", "--grace_seconds=2", "--train.save_every_steps=5", *TINY,
    ]  # fmt: skip
    with errors.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
    while not between.num_faults:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 143, errors.read_text()
    assert between.num_faults == 1, "the server was not even asked again"


def test_mistakes_are_one_sentence_and_start_nothing(folder, corpus):
    run = folder / "never"
    for words, code, said in [
        (["pretrain", "bert-tiny", f"--data={corpus}", f"--run_dir={run}", "--max_step=3"], 2,
         "--max_steps"),
        (["pretrain", "bert-tinny", f"--data={corpus}", f"--run_dir={run}"], 78, "bert-tiny"),
        (["pretrain", "bert-tiny", f"--data={folder}", f"--run_dir={run}"], 65, "prepare"),
        (["pretrain", "bert-tiny", f"--data={corpus}", f"--run_dir={run}",
          "--sequence_length=64"], 78, "set --sequence_length=32"),
        (["export", f"--run={folder}", f"--out={run}"], 65, "is not a run"),
        (["glue", f"--model={folder}", f"--glue={folder}/glue", f"--out={run}"], 65,
         "nor a run (run.json is missing)"),
        (["glue", f"--model={folder}", f"--glue={folder}/nothing", f"--out={run}"], 65, "nothing"),
        (["leaderboard", f"--results={folder}/nothing"], 65, "nothing"),
    ]:  # fmt: skip
        done = smallbench(*words, code=code)
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()[-1]) < 500
        assert not run.exists(), words
