"""An ablation of several processes in one storage ends as that of a single one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from smallbench.ablation import driver
from smallbench.ablation.plan import PLAN
from smallbench.checkpoints.lease import RunLease
from smallbench.errors import ConflictError
from smallbench.jobs.cli import main
from smallbench.stop import SignalStop
from smallbench.storage import open_storage
from tests.ablation.conftest import VARIANTS, flags

TABLES = ("ablation.json", "ablation.md")


def tables(folder):
    return {name: (folder / name).read_bytes() for name in TABLES}


def words_of(corpus, out, **more):
    return ["ablate", *VARIANTS, *flags(corpus, out, **more)]


def make(corpus, disk, number, **more):
    """Make planned run `number` of four as a pod does, on a machine with an empty disk."""
    shutil.rmtree(disk, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB_COMPLETION_INDEX", str(number - 1))
        return main(words_of(corpus, disk, num_shards=4, **more))


class KilledError(BaseException):
    """The process ends here."""


def killed(*_):
    raise KilledError


@pytest.fixture(scope="module")
def stored(corpus, tmp_path_factory):
    """A storage in which separate processes have made the runs, out of order and interrupted."""
    folder = tmp_path_factory.mktemp("stored")
    disk, storage = folder / "disk", folder / "storage"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallbench.pretraining.pretrain.plot_loss", lambda *_, **__: None)
        assert make(corpus, disk, 3, storage=storage) == 0
        left = iter(range(3))  # a preempted pod, in the middle of its run
        with pytest.MonkeyPatch.context() as asked:
            asked.setattr(SignalStop, "asked", lambda self: next(left, -1) < 0)
            assert make(corpus, disk, 1, storage=storage) == 75
        with pytest.MonkeyPatch.context() as kill:  # a pod that is lost after its last step
            kill.setattr(driver, "write_json", killed)
            with pytest.raises(KilledError):
                make(corpus, disk, 4, storage=storage)
        for number in (4, 1, 2):
            assert make(corpus, disk, number, storage=storage) == 0
    return storage


def test_runs_of_separate_processes_make_the_tables_of_one(stored, whole, tmp_path, capsys):
    assert main(["ablate", "collect", str(stored), f"--out={tmp_path / 'out'}"]) == 0
    assert "4/4 runs have ended" in capsys.readouterr().out
    assert tables(tmp_path / "out") == tables(whole)
    assert "bert-tiny seed 2" in (tmp_path / "out" / "report.html").read_text()
    copy = shutil.copytree(stored, tmp_path / "copy")  # on a common disk it needs no copy
    assert main(["ablate", "collect", str(copy), f"--out={copy}"]) == 0
    assert tables(copy) == tables(whole)


def test_the_tables_are_made_without_torch(stored, whole, tmp_path):
    program = (
        "import sys\n"
        "from smallbench.jobs.cli import main\n"
        f"code = main(['ablate', 'collect', {str(stored)!r}, '--out={tmp_path}'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert tables(tmp_path) == tables(whole)


def test_the_same_command_without_a_shard_repeats_no_stored_run(
    stored, whole, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "pretrain", killed)
    assert main(words_of(corpus, tmp_path, storage=stored)) == 0
    assert tables(tmp_path) == tables(whole)


def test_a_finished_ablation_may_get_a_storage(whole, corpus, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    storage = tmp_path / "storage"
    assert main(words_of(corpus, out, storage=storage, shard="2/4")) == 0
    run = storage / "deberta-tiny" / "seed-1"
    assert [path.name for path in (run / "commits").iterdir()] == ["step-0000000003.json"]
    content = [
        json.loads((folder / "outcome.json").read_text())
        for folder in (run, out / "bert-tiny" / "seed-1")
    ]
    assert content[0] == content[1]


def test_a_run_that_is_missing_is_named(stored, tmp_path, capsys):
    source = shutil.copytree(stored, tmp_path / "source")
    shutil.copytree(source / "bert-tiny" / "seed-1", source / "bert-tiny" / "seed-7")
    shutil.rmtree(source / "deberta-tiny" / "seed-1")
    (source / "bert-tiny" / "seed-2" / "outcome.json").unlink()
    assert main(["ablate", "collect", str(source), f"--out={tmp_path / 'out'}"]) == 69
    said = capsys.readouterr()
    assert "2/4 runs have ended" in said.out
    assert "not in the tables: bert-tiny/seed-7" in said.out
    assert "deberta-tiny seed 1: it has no checkpoint yet" in said.out
    assert "bert-tiny seed 2: its pretraining has not ended; the newest" in said.out
    assert "2 of 4 runs are missing; deberta-tiny seed 1" in said.err
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [run["status"] for run in content["runs"]] == ["done", "missing", "missing", "done"]
    assert "deberta-tiny seed 1 missing" in (tmp_path / "out" / "ablation.md").read_text()


def test_a_run_that_another_process_makes_is_refused(corpus, tmp_path, capsys):
    place = tmp_path / "storage" / "bert-tiny" / "seed-1"
    lease, is_over = RunLease(open_storage(str(place)), seconds=1), threading.Event()
    lease.claim(holder="another")

    def renew():
        while not is_over.wait(0.1):
            lease.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        code = make(corpus, tmp_path / "disk", 1, storage=tmp_path / "storage", lease_seconds=1)
    finally:
        is_over.set()
        thread.join()
    assert code == 76
    assert "is writing to the run in" in capsys.readouterr().err
    assert not (place / "outcome.json").exists()


def test_a_run_is_also_owned_while_it_is_scored(corpus, tmp_path, monkeypatch):
    place = open_storage(str(tmp_path / "storage" / "bert-tiny" / "seed-1"))

    def score(*_):
        with pytest.raises(ConflictError, match="is writing to the run in"):
            RunLease(place, seconds=1).claim(holder="another")
        raise KilledError

    monkeypatch.setattr(driver, "_score", score)
    glue = {"glue": "samples", "tasks": "rte"}
    with pytest.raises(KilledError):
        make(corpus, tmp_path / "d", 1, storage=tmp_path / "storage", lease_seconds=1, **glue)


def test_the_runs_of_another_budget_are_refused(stored, corpus, tmp_path, capsys):
    before = (stored / PLAN).read_bytes()
    assert make(corpus, tmp_path, 1, storage=stored, flops=1e8) == 78
    assert "--storage holds an ablation that this command cannot continue" in (
        capsys.readouterr().err
    )
    another_run = words_of(corpus, tmp_path, storage=stored, flops=1e8, seeds=3, shard="1/2")
    assert main(another_run) == 78
    assert "holds an ablation of 6e+07 FLOPs a run, not 1e+08" in capsys.readouterr().err
    assert (stored / PLAN).read_bytes() == before


@pytest.mark.slow
def test_a_bucket_keeps_a_run_and_says_which_are_missing(
    moto_bucket, whole, corpus, tmp_path, capsys
):
    address = {"endpoint_url": moto_bucket.server.endpoint_url, "addressing_style": "path"}
    url = f"{moto_bucket.url}/ablations/a"
    assert make(corpus, tmp_path / "disk", 1, storage=url, **address) == 0
    assert f"smallbench ablate collect {url}" in capsys.readouterr().out
    given = [f"--{name}={value}" for name, value in address.items()]
    assert main(["ablate", "collect", url, f"--out={tmp_path / 'out'}", *given]) == 69
    assert "1/4 runs have ended" in capsys.readouterr().out
    found, expected = (
        json.loads((folder / "ablation.json").read_text())["runs"][0]
        for folder in (tmp_path / "out", whole)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not an ablation (plan.json is missing)"),
        ("{", "cannot be read as JSON"),
        ("{}", "schema_version None, expected 1"),
        ({"schema_version": 2}, "expected 1"),
        ({"folders": {"bert-tiny": "../elsewhere"}}, "is not the name of a folder"),
        ({"folders": {}}, "seeds or variants are missing"),
        ({"measured": {"bert-tiny": 1}}, "measured: {'bert-tiny': 1} (expected keys"),
        ({"seeds": [], "folders": {"a": "a"}, "measured": {"a": {}}}, "seeds or variants"),
        ({"scoring": {"tasks": ["cola"]}}, "missing key 'learning_rate'"),
    ],
)
def test_a_plan_that_is_none_is_refused(stored, tmp_path, capsys, content, said):
    if content is not None:
        if isinstance(content, dict):
            whole_plan = json.loads((stored / PLAN).read_text())
            content = json.dumps(whole_plan | content)
        (tmp_path / PLAN).write_text(content)
    assert main(["ablate", "collect", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 65
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


GLUE = {
    "glue": "samples", "tasks": "rte,cola", "epochs": 1, "max_train_examples": 32, "ft_seeds": "1,2"
}  # fmt: skip


@pytest.mark.slow
def test_pods_that_are_killed_in_glue_make_the_tables_of_one_process(corpus, tmp_path):
    """Real processes, each with an empty disk; one is killed after its first fine-tuning."""
    assert main(words_of(corpus, tmp_path / "whole", **GLUE)) == 0

    def pod(number):
        line = words_of(
            corpus, tmp_path / f"disk-{number}-{time.time_ns()}", num_shards=4,
            storage=tmp_path / "storage", lease_seconds=2, **GLUE,
        )  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "smallbench.jobs.cli", *line],
            env={**os.environ, "JOB_COMPLETION_INDEX": str(number - 1)},
        )

    first = pod(2)
    results = tmp_path / "storage" / "deberta-tiny" / "seed-1"
    while not list(results.glob("glue-*/runs/*/*/result.json")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (results / "outcome.json").exists()
    for number in (4, 2, 1, 3):
        assert pod(number).wait() == 0
    out = tmp_path / "out"
    assert main(["ablate", "collect", str(tmp_path / "storage"), f"--out={out}"]) == 0
    assert tables(out) == tables(tmp_path / "whole")
