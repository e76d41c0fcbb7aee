"""W&B shows what the metrics file holds: read back from its own file, and from a server.

The client and its service are real; the server is `tests.servers.wandb`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from smallbench.errors import InterruptedRunError
from smallbench.files import read_json
from smallbench.pretraining.pretrain import pretrain
from smallbench.stop import Stop
from smallbench.tracking import wandb as tracker
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.dashboard import save_dashboard
from smallbench.tracking.jsonl import read_metrics
from smallbench.tracking.panels import SECTIONS
from smallbench.tracking.wandb import WandbRun, row_of
from smallbench.train.config import DurabilityConfig
from tests.pretraining.test_pretrain import StopAfter, tiny
from tests.servers.wandb import WandbServer
from tests.tracking.wandb_file import items, of_kind, read_wandb, rows, summary

ON = TrackerConfig(tracker="wandb", wandb_project="p")


@pytest.fixture(autouse=True)
def _no_key(no_wandb_key):
    pass


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        use(monkeypatch, server.url)
        yield server


def use(monkeypatch, url):
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.2")


def run(corpus, run_dir, **arguments):
    pretrain(tiny(), data=corpus, run_dir=run_dir, tracking=ON, **arguments)


def expected(run_dir):
    """What W&B must show: metrics.jsonl, record for record."""
    found = [row_of(record) for record in read_metrics(run_dir / "metrics.jsonl")]
    assert len(found) == 10
    return found


def offline(run_dir):
    """The records of the only offline directory."""
    (directory,) = (run_dir / "wandb").glob("offline-run-*")
    return read_wandb(directory)


def without_own(served):
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in served]


def test_a_row_is_the_record_under_its_event_with_the_axes():
    record = {"event": "eval", "step": 5, "tokens": 80, "train_seconds": 7200.0, "loss": None}
    assert row_of(record) == {
        "eval/step": 5, "eval/tokens": 80, "eval/train_seconds": 7200.0, "eval/loss": None,
        "step": 5, "tokens": 80, "hours": 2.0,
    }  # fmt: skip


# Offline


def test_without_a_key_what_is_logged_offline_equals_the_metrics_file(
    corpus, tmp_path, server, monkeypatch, capfd
):
    monkeypatch.delenv("WANDB_API_KEY")
    run_dir = tmp_path / "run"
    run(corpus, run_dir)
    records = offline(run_dir)
    assert rows(records) == expected(run_dir)
    assert server.num_requests == 0
    (directory,) = (run_dir / "wandb").glob("offline-run-*")
    assert f"to send this run: wandb sync {directory}\n" in capfd.readouterr().err


def test_a_run_says_what_it_is(corpus, tmp_path):
    run(corpus, tmp_path / "run")
    records = offline(tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    (first, *_) = of_kind(records, "run")
    assert (first.run_id, first.project, first.run_group, first.job_type, first.display_name) == (
        record["run_id"], "p", "bert-tiny", "pretrain", "run",
    )  # fmt: skip
    config = items(first.config.update)
    assert config["optim"] == record["config"]["optim"]
    assert config["config_digest"] == record["config_digest"]
    metrics = {(m.name or m.glob_name): m.step_metric for m in of_kind(records, "metric")}
    assert metrics == {"step": "", "tokens": "", "hours": "", "train/*": "step", "eval/*": "step"}
    assert of_kind(records, "stats"), "system metrics"
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert summary(records)["eval/loss"] == last["loss"]
    assert summary(records)["run/attempts"] == 1
    assert of_kind(records, "exit")[0].exit_code == 0


def test_an_interrupted_offline_run_is_one_complete_run(corpus, tmp_path):
    for steps in (9, 4):
        with pytest.raises(InterruptedRunError):
            run(corpus, tmp_path, stop=StopAfter(steps))
        records = offline(tmp_path)
        assert of_kind(records, "exit")[0].exit_code == 75
        assert of_kind(records, "preempting")
    run(corpus, tmp_path)
    records = offline(tmp_path)
    assert rows(records) == expected(tmp_path)
    assert of_kind(records, "run")[0].run_id == read_json(tmp_path / "run.json")["run_id"]


RUN = (
    "import sys, time; from pathlib import Path; from tests.tracking.test_wandb import *;"
    "from smallbench.pretraining import pretrain as pretrain_module;"
    "torch = __import__('torch'); torch.set_num_threads(1);"
    "pretrain_module.matrix_peak_flops = lambda *_: 1e12;"
)
RESUMED = RUN + "run(Path(sys.argv[1]), Path(sys.argv[2]))"
KILLED = (
    RUN
    # Its fourteenth step is the last that it comes to, however late the kill.
    + "seconds = iter([float(sys.argv[3])] * 13 + [600.0]);"
    "run(Path(sys.argv[1]), Path(sys.argv[2]), stop=Stop(lambda: time.sleep(next(seconds))))"
)


def kill_after(corpus, run_dir, *, step_seconds, is_time):
    """SIGKILL in a real process between two checkpoints."""
    arguments = [str(corpus), str(run_dir), str(step_seconds)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
    while not is_time():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_offline_continues_under_its_id(corpus, tmp_path):
    def is_time():
        return (tmp_path / "commits" / "step-0000000008.json").exists() and (
            '"step": 12' in (tmp_path / "metrics.jsonl").read_text()
        )

    kill_after(corpus, tmp_path, step_seconds=0.05, is_time=is_time)
    (killed,) = (tmp_path / "wandb").glob("offline-run-*")
    run(corpus, tmp_path)
    assert not killed.exists(), "what it held is in the newer one"
    assert rows(offline(tmp_path)) == expected(tmp_path)
    (first, *_) = of_kind(offline(tmp_path), "run")
    assert f"-{first.run_id}" in killed.name


# Online


@pytest.mark.slow
def test_a_killed_run_continues_under_its_id_without_lost_or_repeated_rows(
    corpus, tmp_path, server
):
    """The kill comes after rows that lie behind the checkpoint have reached the server."""

    def is_time():
        logged = [row["step"] for served in server.runs.values() for row in served["rows"]]
        return max(logged, default=0) >= 10 and 8 in steps_of(tmp_path)

    # Slow, since the client sends what it has every few seconds.
    kill_after(corpus, tmp_path, step_seconds=0.7, is_time=is_time)
    run_id = read_json(tmp_path / "run.json")["run_id"]
    # In a fresh process like the killed one: rows of both are compared to the last bit.
    subprocess.run([sys.executable, "-c", RESUMED, str(corpus), str(tmp_path)], check=True)
    assert list(server.runs) == [run_id]
    served = without_own(server.runs[run_id]["rows"])
    # Steps that were repeated are those of the killed attempt, whose times were others.
    assert [untimed(row) for row in served] == [untimed(row) for row in expected(tmp_path)]
    assert [row["_step"] for row in server.runs[run_id]["rows"]] == list(range(10))
    assert server.runs[run_id]["exit_code"] == 0
    assert server.runs[run_id]["jobType"] == "pretrain"


def steps_of(run_dir):
    return {int(p.stem.removeprefix("step-")) for p in (run_dir / "commits").glob("step-*.json")}


def untimed(row):
    words = ("seconds", "per_second", "mfu", "hours")
    return {key: value for key, value in row.items() if not key.endswith(words)}


def test_an_online_attempt_sends_the_rows_of_an_offline_one(corpus, tmp_path, server):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        with pytest.raises(InterruptedRunError):
            run(corpus, tmp_path, stop=StopAfter(9))
    run(corpus, tmp_path)
    ((run_id, served),) = server.runs.items()
    assert run_id == read_json(tmp_path / "run.json")["run_id"]
    assert without_own(served["rows"]) == expected(tmp_path)


def test_offline_attempts_that_are_sent_one_after_the_other_are_one_run(
    corpus, tmp_path, server, monkeypatch
):
    """With the command that is printed; nothing arrives twice."""
    key = os.environ["WANDB_API_KEY"]
    wandb = Path(sys.executable).parent / "wandb"
    monkeypatch.delenv("WANDB_API_KEY")
    for steps in (9, 99):
        with suppress(InterruptedRunError):
            run(corpus, tmp_path, stop=StopAfter(steps))
        (directory,) = (tmp_path / "wandb").glob("offline-run-*")
        with monkeypatch.context() as patch:
            patch.setenv("WANDB_API_KEY", key)
            subprocess.run(
                [wandb, "sync", directory], cwd=tmp_path, check=True, capture_output=True
            )
    ((run_id, served),) = server.runs.items()
    assert run_id == read_json(tmp_path / "run.json")["run_id"]
    assert without_own(served["rows"]) == expected(tmp_path)


def test_on_another_machine_the_run_continues_under_its_id(corpus, tmp_path, server):
    durability = DurabilityConfig(storage=str(tmp_path / "bucket"), lease_seconds=0.2)
    with pytest.raises(InterruptedRunError):
        run(corpus, tmp_path / "run", durability=durability, stop=StopAfter(9))
    shutil.rmtree(tmp_path / "run")
    run(corpus, tmp_path / "run", durability=durability)
    ((_, served),) = server.runs.items()
    assert [untimed(row) for row in without_own(served["rows"])] == [
        untimed(row) for row in expected(tmp_path / "run")
    ]


def test_the_stop_button_ends_the_run_as_a_saved_interruption(
    corpus, tmp_path, server, monkeypatch
):
    from wandb.sdk.lib.run_stopping import RunStopChecker

    monkeypatch.setitem(RunStopChecker.__init__.__kwdefaults__, "poll_interval", 0.1)  # 15 s
    server.stop_pressed = True
    with pytest.raises(InterruptedRunError, match="saved at step"):
        run(corpus, tmp_path, stop=Stop(lambda: time.sleep(0.5)))
    ((_, served),) = server.runs.items()
    assert served["exit_code"] == 75
    assert served["preempting"]


@pytest.fixture
def silent_address():
    """Of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_address():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_server_that_does_not_answer_is_one_sentence_and_offline(
    corpus, tmp_path, monkeypatch, capfd, silent_address, kind
):
    url = closed_address() if kind == "closed" else silent_address
    use(monkeypatch, url)
    monkeypatch.setattr(tracker, "INIT_SECONDS", 2.0)
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 2.0)
    start = time.monotonic()
    run(corpus, tmp_path)
    assert time.monotonic() - start < 30
    assert rows(offline(tmp_path)) == expected(tmp_path)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B ")]
    assert len(said) == 2
    assert said[0].startswith(f"W&B at {url} cannot be used, going offline: ")
    assert "wandb sync" in said[1]


WAITING = (
    "import os, sys; from pathlib import Path; from tests.tracking.test_wandb import *;"
    "from smallbench.pretraining import pretrain as pretrain_module;"
    "pretrain_module.matrix_peak_flops = lambda *_: 1e12;"
    "tracker.INIT_SECONDS = 600.0;"
    "stop = Stop(StopAfter(20).asked, lambda: 3.0)\n"
    "try: run(Path(sys.argv[1]), Path(sys.argv[2]), stop=stop)\n"
    "except InterruptedRunError as error: Path(sys.argv[2], 'ended').touch(); sys.exit(75)"
)


@pytest.mark.slow
def test_neither_steps_nor_the_exit_wait_for_a_server(
    corpus, tmp_path, monkeypatch, silent_address
):
    """All steps are done, and the process is gone, long before the server's time is over."""
    use(monkeypatch, silent_address)
    command = [sys.executable, "-c", WAITING, str(corpus), str(tmp_path)]
    process = subprocess.Popen(command)
    while not (tmp_path / "ended").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert process.wait(timeout=20) == 75
    assert max(steps_of(tmp_path)) == 20


def test_rows_that_the_server_missed_at_the_end_can_be_synced(tmp_path, server, monkeypatch, capfd):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(server, "stream", lambda *_: time.sleep(30))
    start = time.monotonic()
    record = {"event": "train", "step": 1, "tokens": 2, "train_seconds": 3.0}
    with view(tmp_path) as run:
        run.log(record)
    assert time.monotonic() - start < 20
    command = capfd.readouterr().err.splitlines()[-1]
    assert command.startswith("W&B did not take everything in 1 s; to send it: wandb sync ")
    directory = Path(command.split("wandb sync ")[1])
    assert rows(read_wandb(directory)) == [row_of(record)]


def view(folder, **arguments):
    values = {"run_id": "abc", "name": "n", "group": "g", "job_type": "j", "settings": {}}
    return WandbRun(ON, folder=folder, **(values | arguments))


def test_a_failure_of_wandb_is_one_sentence_and_ends_nothing(tmp_path, capfd):
    with view(tmp_path, run_id="no/id") as run:
        run.log({"event": "train", "step": 1, "tokens": 2, "train_seconds": 3.0})
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B ")]
    assert len(said) == 1
    assert said[0].startswith("W&B has failed and shows no more of this run: ")


def test_disabled_by_its_own_variable_it_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with view(tmp_path) as run:
        run.log({"event": "train", "step": 1, "tokens": 2, "train_seconds": 3.0})
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.slow
def test_with_no_tracker_wandb_is_not_imported(corpus, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.pretraining.test_pretrain import *;"
        "pretrain(tiny(train__max_steps=1), data=Path(sys.argv[1]), run_dir=Path(sys.argv[2]));"
        "sys.exit('wandb' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(corpus), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


# Artifacts and the dashboard


def test_the_checkpoints_of_a_finished_run_are_artifacts_where_they_are(corpus, tmp_path):
    durability = DurabilityConfig(storage=str(tmp_path / "bucket"))
    run(corpus, tmp_path / "run", durability=durability)
    artifacts = of_kind(offline(tmp_path / "run"), "artifact")
    steps = sorted(steps_of(tmp_path / "bucket" / "run"))
    assert [set(artifact.aliases) for artifact in artifacts] == [
        {"latest", "step-0000000016"},
        {"latest", "step-0000000024", "final"},
    ]
    for step, artifact in zip(steps, artifacts, strict=True):
        commit = read_json(tmp_path / "bucket" / "run" / "commits" / f"step-{step:010}.json")
        assert artifact.type == "checkpoint"
        assert json.loads(artifact.metadata)["files"] == commit["files"]
        references = {entry.path: entry.ref for entry in artifact.manifest.contents}
        place = tmp_path / "bucket" / "run" / commit["directory"]
        assert references == {name: f"file://{place}/{name}" for name in commit["files"]}
        assert all(Path(ref.removeprefix("file://")).is_file() for ref in references.values())


def test_an_artifact_in_a_bucket_is_referred_to_without_a_look_at_it(tmp_path):
    with view(tmp_path) as run:
        run.refer("export-x", kind="model", url="s3://lab/x", files=["config.json"], metadata={})
    (artifact,) = of_kind(offline(tmp_path), "artifact")
    (entry,) = artifact.manifest.contents
    assert (entry.path, entry.ref) == ("config.json", "s3://lab/x/config.json")


def test_the_dashboard_has_every_chart_against_tokens(server):
    url = save_dashboard("p", tasks=["cola"])
    assert url.startswith(f"{server.url}/me/p?nw=")
    (sent,) = server.views
    sections = json.loads(sent["spec"])["section"]["panelBankConfig"]["sections"]
    charts = [panel["config"] for section in sections for panel in section["panels"]]
    lines = [chart for chart in charts if "xAxis" in chart]
    assert [chart["metrics"] for chart in lines] == [
        list(panel.keys) for panels in SECTIONS.values() for panel in panels
    ]
    assert {chart["xAxis"] for chart in lines} == {"tokens"}
    assert ["glue/cola"] in [chart.get("metrics") for chart in charts]
