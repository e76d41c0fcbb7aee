"""Inspect and manage the checkpoints of a run."""

import json
import shutil

import pytest

from smallbench.checkpoints.inspection import checkpoints_table, open_run, prune, pull, verify
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import ConfigError, ConflictError, DataError
from smallbench.files import exclusive_lock
from smallbench.pretraining.pretrain import pretrain
from smallbench.storage.config import StorageConfig
from smallbench.storage.local import LocalStorage
from smallbench.train.config import DurabilityConfig
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import tiny

STEPS = [2, 4, 6, 8]


@pytest.fixture(scope="module")
def kept(corpus, tmp_path_factory):
    """A run of eight steps with all of its checkpoints, on the disk and in a storage."""
    folder = tmp_path_factory.mktemp("kept")
    values = {**VALUES, "train__save_every_steps": 2, "train__keep_last": 9}
    durability = DurabilityConfig(storage=str(folder / "bucket"))
    pretrain(tiny(**values), data=corpus, run_dir=folder / "run", durability=durability)
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "copy")
    return tmp_path / "copy"


def local(folder):
    return open_run(str(folder / "run"), StorageConfig())


def test_the_table_has_a_line_for_each_checkpoint(folder):
    lines = checkpoints_table(local(folder)).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == STEPS
    CheckpointStore(folder / "run").quarantine(4)
    lines = checkpoints_table(local(folder)).splitlines()
    assert [int(line.split()[0]) for line in lines[1:-1]] == [2, 6, 8]
    assert lines[-1] == "1 more found damaged and set aside"


def test_a_run_that_commits_and_prunes_meanwhile_is_listed(folder):
    class Busy(LocalStorage):
        """After each listing, the oldest checkpoint is pruned and one is committed."""

        def list(self, prefix=""):
            found = super().list(prefix)
            commits = sorted((folder / "run" / "commits").iterdir())
            commits[0].rename(commits[0].with_name("step-0000000099.json"))
            return found

    lines = checkpoints_table(Busy(folder / "run")).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == STEPS[1:]


def test_verifying_names_what_is_damaged(folder):
    assert verify(local(folder)).count("whole") == len(STEPS)
    (path,) = folder.glob("run/checkpoints/*4/*/engine.pt")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"1 of 4 checkpoints damaged: step 4"):
        verify(local(folder))
    assert verify(local(folder), step=6) == "step 6: whole"
    with pytest.raises(ConfigError, match="no checkpoint of step 5"):
        verify(local(folder), step=5)


def test_a_pulled_run_is_a_run(folder, tmp_path):
    assert pull(local(folder), tmp_path / "out") == 8
    assert CheckpointStore(tmp_path / "out").newest().step == 8
    for name in ("run.json", "metrics.jsonl", "tokenizer/tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "run" / name).read_bytes()
    pull(local(folder), tmp_path / "out", step=4)
    assert CheckpointStore(tmp_path / "out").steps() == [4, 8]
    records = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert records == (folder / "run" / "metrics.jsonl").read_bytes(), "those of the newest"


def test_pulling_replaces_neither_the_run_itself_nor_another(folder, tmp_path):
    with pytest.raises(ConfigError, match="is the run itself"):
        pull(local(folder), folder / "run")
    shutil.copytree(folder / "run", tmp_path / "other")
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    (tmp_path / "other" / "run.json").write_text(json.dumps(record | {"run_id": "other"}))
    before = {p: p.read_bytes() for p in (tmp_path / "other").rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"two different runs; choose another --out$"):
        pull(local(folder), tmp_path / "other")
    assert {p: p.read_bytes() for p in before} == before
    assert CheckpointStore(folder / "run").steps() == STEPS


def test_pruning_keeps_the_newest_whole_ones_and_the_runs_own_milestones(folder):
    CheckpointStore(folder / "run").quarantine(8)
    record = json.loads((folder / "run" / "run.json").read_text())
    record["config"]["train"]["milestones"] = [2]
    (folder / "run" / "run.json").write_text(json.dumps(record))
    assert prune(local(folder), Retention(keep_last=2)) == []
    assert CheckpointStore(folder / "run").steps() == [2, 4, 6]


def test_an_active_run_is_not_pruned(folder):
    with (
        exclusive_lock(folder / "run" / "lock", "held"),
        pytest.raises(ConflictError, match="another process trains"),
    ):
        prune(local(folder), Retention())
    there = open_run(str(folder / "bucket" / "run"), StorageConfig())
    RemoteRun(there).lease.claim(holder="somebody")
    with pytest.raises(ConflictError, match="is writing"):
        prune(there, Retention())


def test_a_storage_in_the_run_itself_is_refused(corpus, tmp_path):
    for storage in (tmp_path, tmp_path / "run", tmp_path / "run" / "bucket"):
        with pytest.raises(ConfigError, match="its own directory"):
            pretrain(
                tiny(**VALUES),
                data=corpus,
                run_dir=tmp_path / "run",
                durability=DurabilityConfig(storage=str(storage)),
            )
