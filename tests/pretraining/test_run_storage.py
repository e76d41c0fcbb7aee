"""What an attempt finds in its run directory, and what it makes of it before it begins."""

import json
import shutil

import pytest

from smallbench.checkpoints.manifest import OtherVersionError
from smallbench.checkpoints.record import LOCK_NAME, holder_of
from smallbench.checkpoints.store import CheckpointStore
from smallbench.data.shards import MEMORY_NAME, verify_once
from smallbench.errors import ConfigError, ConflictError, DataError, SmallbenchError
from smallbench.files import exclusive_lock, read_json
from smallbench.pretraining import pretrain as pretrain_module
from smallbench.pretraining import run_storage
from smallbench.pretraining.pretrain import pretrain
from smallbench.stop import Stop
from smallbench.train.config import DurabilityConfig
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import outcome, tiny

# A copy


def holder(run_dir):
    with exclusive_lock(run_dir / LOCK_NAME, "held"):
        return holder_of(run_dir)


def test_a_run_directory_keeps_its_name_however_often_it_is_asked_or_moved(tmp_path):
    name = holder(tmp_path / "run")
    assert holder(tmp_path / "run") == name
    (tmp_path / "run").rename(tmp_path / "moved")
    assert holder(tmp_path / "moved") == name


def test_a_copy_has_a_name_of_its_own(tmp_path, capsys):
    name = holder(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    own = holder(tmp_path / "copy")
    assert own != name
    assert "was copied" in capsys.readouterr().err
    assert holder(tmp_path / "copy") == own
    assert holder(tmp_path / "run") == name
    assert capsys.readouterr().err == ""


def test_a_truncated_holder_is_not_called_a_copy(tmp_path, capsys):
    name = holder(tmp_path / "run")
    (tmp_path / "run" / "holder.json").write_text('{"name": ')
    own = holder(tmp_path / "run")
    assert own != name
    printed = capsys.readouterr().err
    assert "holder.json cannot be read as JSON" in printed
    assert "copied" not in printed
    assert holder(tmp_path / "run") == own


def test_a_copy_waits_for_the_original_and_takes_nothing_from_it(corpus, tmp_path):
    """Both have one name in the storage, since both are called `run`."""
    durability = DurabilityConfig(storage=str(tmp_path / "bucket"), lease_seconds=3.0)
    original, copy = tmp_path / "a" / "run", tmp_path / "b" / "run"
    checked = []

    def copy_and_start():
        if not checked and CheckpointStore(original).steps():
            checked.append(True)
            shutil.copytree(original, copy)
            with pytest.raises(ConflictError, match="is writing to the run"):
                pretrain(tiny(**VALUES), data=corpus, run_dir=copy, durability=durability)
        return False

    pretrain(
        tiny(**VALUES),
        data=corpus,
        run_dir=original,
        durability=durability,
        stop=Stop(copy_and_start),
    )
    assert checked


# A first attempt that failed


def test_an_attempt_that_failed_before_a_checkpoint_fixes_nothing(corpus, tmp_path, capsys):
    run_dir, storage = tmp_path / "run", DurabilityConfig(storage=str(tmp_path / "bucket"))

    def fail(*_, **__):
        raise SmallbenchError("of no matter")

    values = {**VALUES, "train__seed": 7, "train__global_batch_size": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_module, "build_objective", fail)
        with pytest.raises(SmallbenchError, match="no matter"):
            pretrain(tiny(**values), data=corpus, run_dir=run_dir, durability=storage)
    first = read_json(run_dir / "run.json")
    assert first["config"]["train"]["seed"] == 7
    pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=storage)
    assert "begins with this configuration" in capsys.readouterr().err
    second = read_json(run_dir / "run.json")
    assert second["run_id"] == first["run_id"]
    assert second["config"]["train"]["seed"] != 7
    assert len(second["attempts"]) == 2
    pretrain(tiny(**VALUES), data=corpus, run_dir=tmp_path / "fresh")
    assert outcome(run_dir) == outcome(tmp_path / "fresh")
    with pytest.raises(ConfigError, match="another configuration"):
        pretrain(tiny(**values), data=corpus, run_dir=run_dir, durability=storage)


# Another release


def test_another_releases_run_is_refused_before_anything_is_claimed(corpus, tmp_path):
    run_dir, storage = tmp_path / "run", DurabilityConfig(storage=str(tmp_path / "bucket"))
    pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=storage)
    there = tmp_path / "bucket" / "run"
    for path in (run_dir / "run.json", there / "run.json", next(there.glob("commits/*"))):
        content = path.read_text()
        path.write_text(json.dumps(json.loads(content) | {"schema_version": 9}))
        attempts = sorted(there.glob("attempts/*"))
        with pytest.raises(OtherVersionError, match=r"schema_version 9.*this release reads"):
            pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=storage)
        assert sorted(there.glob("attempts/*")) == attempts
        path.write_text(content)
    pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=storage)


# The corpus


def test_shards_are_read_once_and_again_when_they_are_other_files(corpus, tmp_path):
    data, memory = tmp_path / "data", tmp_path / "verified.json"
    shutil.copytree(corpus, data)
    num_shards = len(list(data.glob("*.bin")))
    assert verify_once(data, memory) == num_shards
    assert verify_once(data, memory) == 0
    shard = next(data.glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes())
    assert verify_once(data, memory) == 1
    memory.write_text("no JSON")
    assert verify_once(data, memory) == num_shards


def test_a_shard_that_changed_between_two_starts_is_found(corpus, tmp_path, monkeypatch):
    data, run_dir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(corpus, data)
    pretrain(tiny(**VALUES), data=data, run_dir=run_dir)
    shard = next(data.glob("train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="does not have the SHA-256"):
        pretrain(tiny(**VALUES), data=data, run_dir=run_dir)
    assert MEMORY_NAME == run_storage.MEMORY_NAME
