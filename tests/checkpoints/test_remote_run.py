"""A run in a storage: its owner, its commits, and how another machine continues it."""

import dataclasses
import json
import shutil
import threading

import pytest
import torch

from smallbench.checkpoints.manifest import METRICS, sealed
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.store import CheckpointStore, newest_checkpoint
from smallbench.checkpoints.uploader import Uploader
from smallbench.errors import ConfigError, ConflictError, DataError, UnavailableError
from smallbench.stop import Stop
from smallbench.storage import open_storage
from smallbench.storage.base import AlreadyExistsError
from tests.checkpoints.test_store import save
from tests.train.tiny import trainer


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "bucket" / "run")


def remote_run(url, *, lease_seconds=60.0):
    return RemoteRun(open_storage(url), lease_seconds=lease_seconds)


@pytest.fixture
def made():
    return trainer(num_steps=2)


def committed(store, made, *steps):
    """Checkpoints of `store`, one for each step."""
    checkpoints = []
    for step in steps:
        save(store, made, step)
        checkpoints.append(store.load(step))
    return checkpoints


def change(made):
    with torch.no_grad():
        made.objective.model.predictor.bias.add_(1)


def keep_all(path, attempt=1):
    return CheckpointStore(path, attempt=attempt, retention=Retention(keep_last=99))


def test_another_machine_pulls_the_pushed_checkpoint(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    owner.push(checkpoint)
    owner.push(checkpoint)  # again, as after a kill: nothing changes
    other = keep_all(tmp_path / "b")
    pulled = newest_checkpoint([other, remote_run(url).store], other)
    assert pulled.manifest == checkpoint.manifest
    for path in checkpoint.directory.iterdir():
        assert (pulled.directory / path.name).read_bytes() == path.read_bytes()
    assert other.newest().step == 5, "it is the local store's from now on"


def test_of_many_that_start_at_once_one_owns_the_run(url):
    barrier, owners, losers = threading.Barrier(8), [], []

    class Together:
        """Every process checks the owner of the run before any of them writes."""

        def __init__(self, storage):
            self._storage = storage

        def __getattr__(self, name):
            return getattr(self._storage, name)

        def put(self, key, content, *, only_new=False):
            if only_new:
                barrier.wait(timeout=60)
            self._storage.put(key, content, only_new=only_new)

    def start(name):
        lease = remote_run(url).lease
        lease.storage = Together(lease.storage)
        try:
            owners.append(lease.claim(holder=name))
        except ConflictError as error:
            losers.append(str(error))

    threads = [threading.Thread(target=start, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owners == [1]
    assert len(losers) == 7


def test_a_living_owner_is_left_alone(url):
    owner, asked = remote_run(url, lease_seconds=2.0), []
    owner.lease.claim(holder="a")

    def watch():
        if not asked:  # the other has looked at the lease, and waits
            owner.lease.renew()
        asked.append(True)

    said = []
    with pytest.raises(ConflictError, match="is writing to the run"):
        remote_run(url).lease.claim(holder="b", report=said.append, stop=Stop(watch))
    assert "waiting" in said[0]
    owner.lease.assert_owned()


def test_a_dead_owner_is_followed_when_its_lease_has_run_out(url):
    remote_run(url, lease_seconds=0.5).lease.claim(holder="a")
    waited = []
    assert remote_run(url).lease.claim(holder="b", stop=Stop(lambda: waited.append(True))) == 2
    assert waited


@pytest.mark.parametrize("how", ["same directory", "released"])
def test_a_released_or_long_expired_lease_is_not_waited_for(url, how):
    first = remote_run(url, lease_seconds=1000)
    first.lease.claim(holder="a")
    if how == "released":
        first.lease.release()
    waited, holder = [], "a" if how == "same directory" else "b"
    assert remote_run(url).lease.claim(holder=holder, stop=Stop(lambda: waited.append(True))) == 2
    assert not waited


def test_a_paused_owner_that_was_followed_damages_nothing(url, tmp_path, made):
    """It wakes up in the middle of an upload; the new owner has already committed that step."""
    paused, new = remote_run(url, lease_seconds=0), remote_run(url)
    paused.lease.claim(holder="a")
    new.lease.claim(holder="b")
    (late,) = committed(keep_all(tmp_path / "a"), made, 5)
    change(made)
    (there,) = committed(keep_all(tmp_path / "b", attempt=2), made, 5)
    new.push(there)
    for action in (
        lambda: paused.push(late),
        paused.lease.renew,
        paused.lease.release,
        paused.store.clean_up,
    ):
        with pytest.raises(ConflictError, match="attempt 2 has taken over"):
            action()
    assert new.store.manifest(5) == there.manifest
    assert new.store.clean_up() == 3, "what it had uploaded before it noticed"
    store = keep_all(tmp_path / "c")
    assert newest_checkpoint([new.store], store).manifest == there.manifest


def test_another_content_under_one_step_is_a_conflict_even_without_a_later_attempt(
    url, tmp_path, made
):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (first,) = committed(keep_all(tmp_path / "a"), made, 5)
    owner.push(first)
    change(made)
    (second,) = committed(keep_all(tmp_path / "b", attempt=2), made, 5)
    with pytest.raises(ConflictError, match="committed step 5"):
        owner.push(second)


def objects(url):
    return {s.key: open_storage(url).get(s.key) for s in open_storage(url).list()}


@pytest.mark.parametrize(
    "name", ["module.safetensors", "engine.pt", "random.safetensors", METRICS, "manifest"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_set_aside_and_the_one_before_is_pulled(
    url, tmp_path, made, damage, name, capsys
):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / METRICS).write_text('{"event": "train"}\n')
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    store = keep_all(tmp_path / "a")
    for checkpoint in committed(store, made, 5, 10):
        owner.push(checkpoint)
    key = f"{checkpoint.manifest['directory']}/{name}"
    if name == "manifest":
        key = "commits/step-0000000010.json"
    content = bytearray(owner.storage.get(key))
    if damage == "flip":
        content[len(content) // 2] ^= 1
    if damage == "remove":
        owner.storage.delete([key])
    else:
        owner.storage.put(key, bytes(content if damage == "flip" else content[:-2]))
    other = keep_all(tmp_path / "b")
    assert newest_checkpoint([other, owner.store], other).step == 5
    # Without its manifest it never was one.
    is_seen = (name, damage) != ("manifest", "remove")
    assert len(capsys.readouterr().err.splitlines()) == is_seen
    assert owner.store.steps() == [5]
    assert not list((tmp_path / "b").rglob("*.tmp-*"))
    save(keep_all(tmp_path / "b", attempt=2), made, 10)
    owner.push(other.load(10))
    assert newest_checkpoint([owner.store], keep_all(tmp_path / "c")).step == 10, "saved again"


def test_all_damaged_is_an_error_and_never_a_fresh_start(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    owner.push(checkpoint)
    owner.storage.put(f"{checkpoint.manifest['directory']}/engine.pt", b"")
    for _ in range(2):
        other = keep_all(tmp_path / "b")
        with pytest.raises(DataError, match="every checkpoint"):
            newest_checkpoint([other, owner.store], other)


def test_pruning_keeps_the_newest_the_interval_and_milestones(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    steps = (5, 10, 15, 20, 25, 30)
    for checkpoint in committed(keep_all(tmp_path / "a"), made, *steps):
        owner.push(checkpoint)
    retention = Retention(keep_last=1, keep_every_steps=20, milestones=(5,))
    assert retention.retained(steps) == {5, 20, 30}
    assert owner.store.prune(retention) == [10, 15]  # 25 is one of the newest two
    assert owner.store.steps() == [5, 20, 25, 30]
    kept = {key.split("/")[1] for key in objects(url) if key.startswith("checkpoints/")}
    assert kept == {f"step-{step:010d}" for step in owner.store.steps()}


def test_cleaning_up_deletes_only_files_that_no_manifest_names(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    for checkpoint in committed(keep_all(tmp_path / "a"), made, 5, 10):
        owner.push(checkpoint)
    before = objects(url)
    owner.storage.put("checkpoints/step-0000000010/attempt-0007/engine.pt", b"x")
    owner.storage.put("checkpoints/step-0000000015/attempt-0001/engine.pt", b"x")
    assert owner.store.clean_up() == 2
    assert objects(url) == before


def test_two_runs_of_one_name_are_told_apart(url, tmp_path):
    owner = remote_run(url)
    parts = {"config": {}, "data": "d", "corpus": {}, "plugins": [], "attempts": []}
    there, here = ({"schema_version": 1, "run_id": name, **parts} for name in "ab")
    owner.storage.put("run.json", json.dumps(there).encode())
    (tmp_path / "run.json").write_text(json.dumps(here))
    with pytest.raises(ConfigError, match="two different runs; choose another --run_dir"):
        owner.pull_record(tmp_path)


def test_a_half_written_upload_is_never_committed(url, tmp_path, made):
    """A store that acknowledges uploads that it did not keep."""
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    storage = owner.storage

    class Forgetful:
        def __getattr__(self, name):
            return getattr(storage, name)

        def upload(self, path, key):
            storage.put(key, path.read_bytes()[:-1])

    owner.store.storage = Forgetful()
    with pytest.raises(Exception, match="was not uploaded completely"):
        owner.push(checkpoint)
    assert owner.store.steps() == []


def test_two_files_travel_at_once_and_what_arrived_is_not_sent_again(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    storage, together, sent = owner.storage, threading.Barrier(2), []

    class Busy:
        def __getattr__(self, name):
            return getattr(storage, name)

        def upload(self, path, key):
            sent.append(path.name)
            if len(sent) <= 2:
                together.wait(timeout=30)
            if sent.count("engine.pt") == 1 and path.name == "engine.pt":
                raise UnavailableError("gone for a moment")
            storage.upload(path, key)

    owner.store.storage = Busy()
    with pytest.raises(UnavailableError, match="gone for a moment"):
        owner.push(checkpoint)
    assert owner.store.steps() == []
    owner.push(checkpoint)
    assert owner.store.steps() == [5]
    assert sorted(sent) == sorted([*checkpoint.manifest["files"], "engine.pt"])


def test_an_attempt_is_created_once(url):
    storage = open_storage(url)
    remote_run(url).lease.claim(holder="a")
    with pytest.raises(AlreadyExistsError):
        storage.put("attempts/attempt-0001.json", b"{}", only_new=True)


def test_retention_is_a_value():
    assert dataclasses.replace(Retention(), keep_last=1).retained([1, 2]) == {2}


def test_committed_files_are_never_discarded(url, tmp_path, made):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    owner.push(checkpoint)
    before = objects(url)
    owner.store.discard(checkpoint)
    assert objects(url) == before


def test_known_damage_is_uploaded_again(url, tmp_path, made):
    """Another machine set it aside; the one that has it whole commits it once more."""
    first = remote_run(url)
    first.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    first.push(checkpoint)
    key = f"{checkpoint.manifest['directory']}/engine.pt"
    first.storage.put(key, bytes(first.storage.num_bytes(key)))
    first.store.quarantine(5)
    again = remote_run(url)
    again.lease.claim(holder="a")
    again.push(checkpoint)
    assert newest_checkpoint([again.store], keep_all(tmp_path / "b")).step == 5


def test_a_storage_that_has_lost_the_run_gets_no_commit(url, tmp_path, made):
    """An unmounted disk looks like an empty one."""
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    shutil.rmtree(tmp_path / "bucket")
    with pytest.raises(UnavailableError, match="no longer has attempt 1"):
        owner.push(checkpoint)
    assert owner.store.steps() == []


@pytest.mark.parametrize(
    "change",
    [
        {"directory": "/etc"},
        {"directory": "checkpoints/../../x"},
        {"files": {"../engine.pt": {"bytes": 1, "sha256": ""}}},
    ],
    ids=str,
)
def test_a_manifest_reaches_no_file_outside_its_checkpoint(url, tmp_path, made, change):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    (checkpoint,) = committed(keep_all(tmp_path / "a"), made, 5)
    owner.push(checkpoint)
    key = "commits/step-0000000005.json"
    owner.storage.put(key, json.dumps(sealed({**checkpoint.manifest, **change})).encode())
    with pytest.raises(DataError, match="names"):
        keep_all(tmp_path / "b").download(5, owner.store)


def test_pinned_checkpoints_are_uploaded_even_if_newer_ones_wait(url, tmp_path, made):
    owner, retention = remote_run(url), Retention(keep_last=2, milestones=(10,))
    owner.lease.claim(holder="a")
    uploader = Uploader(owner, retention, max_unsynced_seconds=60)
    for checkpoint in committed(keep_all(tmp_path / "a"), made, 5, 10, 15, 20):
        uploader.submit(checkpoint)
    with uploader:
        assert uploader.drain(30)
    assert owner.store.steps() == [10, 20], "5 and 15 were passed over"
    assert uploader.committed_step == 20


def test_the_end_of_a_reported_failure_is_reported_too(url, tmp_path, made, monkeypatch, capsys):
    """The checkpoint that failed is given up for a newer one, which is stored at once."""
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    old, new = committed(keep_all(tmp_path / "a"), made, 5, 10)
    push = owner.push

    def fail_the_old(checkpoint):
        if checkpoint.step == 5:
            uploader.submit(new)
            raise UnavailableError("gone")
        push(checkpoint)

    monkeypatch.setattr(owner, "push", fail_the_old)
    with Uploader(owner, Retention(), max_unsynced_seconds=600) as uploader:
        uploader.submit(old)
        assert uploader.drain(60)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "storage: step 5 is not stored yet, training continues: gone",
        "storage: step 10 is stored",
    ]


def test_a_crash_of_a_background_thread_ends_the_run(url, tmp_path, made, monkeypatch):
    owner = remote_run(url)
    owner.lease.claim(holder="a")
    monkeypatch.setattr(owner, "push", lambda checkpoint: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with Uploader(owner, Retention(), max_unsynced_seconds=60) as uploader:
        uploader.submit(committed(keep_all(tmp_path / "a"), made, 5)[0])
        assert uploader.drain(30)
        assert "ZeroDivisionError" in str(uploader.failure)
