"""A checkpoint is complete or absent; a damaged one is never used."""

import json
import shutil
import subprocess

import pytest
import torch

from smallbench import files
from smallbench.checkpoints import store as module
from smallbench.checkpoints.manifest import (
    METRICS,
    SCHEMA_VERSION,
    SEAL,
    DamagedError,
    OtherVersionError,
    check_manifest,
)
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.state import random_state
from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import DataError, UnavailableError
from smallbench.files import temporary_sibling
from smallbench.storage.local import LocalStorage
from smallbench.train.optim import MOMENTS
from tests.train.tiny import trainer


@pytest.fixture
def made():
    return trainer(num_steps=2)


def save(store, made, step):
    made.progress.step = step
    manifest = {"step": step, "progress": made.progress.state_dict()}
    store.save(made.engine.weights(), made.engine.state_dict(), [random_state()], manifest)


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path, made):
    made.run()
    store = CheckpointStore(tmp_path)
    save(store, made, 2)
    saved = torch.get_rng_state()
    other = trainer()
    torch.rand(3)
    loaded = store.newest()
    random_before = torch.get_rng_state()
    loaded.load_module(other.objective)
    other.engine.load_state_dict(loaded.engine_state())
    for name, tensor in made.objective.state_dict().items():
        assert torch.equal(other.objective.state_dict()[name], tensor)
    a, b = made.engine.state_dict(), other.engine.state_dict()
    a, b = a["optimizer"]["states"], b["optimizer"]["states"]
    assert a.keys() == b.keys() == made.engine.weights().keys()
    for name, state in a.items():
        assert state["step"] == b[name]["step"] == 2
        assert all(torch.equal(b[name][moment], state[moment]) for moment in MOMENTS)
    loaded.restore_random_state()
    assert torch.equal(torch.get_rng_state(), saved)
    assert not torch.equal(random_before, saved)


def test_only_the_last_are_kept(tmp_path, made):
    store = CheckpointStore(tmp_path, retention=Retention(keep_last=2))
    for step in (5, 10, 15):
        save(store, made, step)
    assert store.steps() == [10, 15]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-0000000010",
        "step-0000000015",
    ]


@pytest.mark.parametrize(
    "name", ["module.safetensors", "engine.pt", "random.safetensors", METRICS, "manifest"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path, made, name, damage, capsys
):
    (tmp_path / METRICS).write_text('{"event": "train"}\n')
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    save(store, made, 10)
    path = tmp_path / "commits" / "step-0000000010.json"
    if name != "manifest":
        path = next((tmp_path / "checkpoints" / "step-0000000010").rglob(name))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        # A manifest's last byte is a line end, and says nothing.
        path.write_bytes(content[: -2 if name == "manifest" else -1])
    else:
        path.unlink()
    assert store.newest().step == 5
    # Without its manifest it never was one.
    is_seen = (name, damage) != ("manifest", "remove")
    assert len(capsys.readouterr().err.splitlines()) == is_seen
    store.clean_up()
    save(CheckpointStore(tmp_path, attempt=2), made, 10)
    assert store.newest().step == 10, "the step can be saved again"


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(tmp_path, made):
    """Each bit in turn: the manifest is refused, or parses to the same content."""
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    path = tmp_path / "commits" / "step-0000000005.json"
    whole, refused = path.read_bytes(), 0
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            try:
                manifest = json.loads(changed)
                check_manifest(manifest)
            except ValueError:
                refused += 1
            else:
                assert manifest == json.loads(whole), bytes(changed)
    assert refused > 7 * len(whole)


def test_a_manifest_without_its_seal_or_of_another_version_is_refused(tmp_path, made):
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    manifest = dict(store.newest().manifest)
    del manifest[SEAL]
    with pytest.raises(DataError, match="its own SHA-256"):
        check_manifest(manifest)
    for version in (SCHEMA_VERSION - 1, SCHEMA_VERSION + 1):
        with pytest.raises(OtherVersionError, match=f"version {version}.*reads {SCHEMA_VERSION}"):
            check_manifest({**manifest, "schema_version": version})
    with pytest.raises(DamagedError):
        check_manifest({**manifest, "schema_version": "two"})


def test_another_releases_checkpoint_is_refused_and_nothing_is_touched(tmp_path, made):
    """Also if a damaged one is newer: the right release must continue the run."""
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    save(store, made, 10)
    path = tmp_path / "commits" / "step-0000000005.json"
    path.write_text(path.read_text().replace('"schema_version": ', '"schema_version": 9'))
    next((tmp_path / "checkpoints" / "step-0000000010").rglob("engine.pt")).write_bytes(b"")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for _ in range(2):
        with pytest.raises(OtherVersionError, match="schema_version 9"):
            store.newest()
        store.clean_up()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_clearing_up_leaves_the_data_of_a_damaged_manifest(tmp_path, made):
    """Otherwise a flipped bit in the directory's name would delete the directory."""
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    path = tmp_path / "commits" / "step-0000000005.json"
    path.write_text(path.read_text().replace("/attempt-0001", "/attempt-0003"))
    store.clean_up()
    assert (tmp_path / "checkpoints" / "step-0000000005" / "attempt-0001" / "engine.pt").exists()


def test_clearing_up_leaves_what_is_not_of_the_checkpoints(tmp_path, made):
    """Another process may be writing a file to a folder of the run directory."""
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    own = temporary_sibling(tmp_path / "commits" / "step-0000000010.json")
    others = temporary_sibling(tmp_path / "export" / "config.json")
    others.parent.mkdir()
    for path in (own, others):
        path.write_bytes(b"{")
    assert store.clean_up() == 1
    assert others.exists()
    assert not own.exists()


def test_a_run_directory_that_does_not_exist_is_clear(tmp_path):
    assert CheckpointStore(tmp_path / "run").clean_up() == 0


def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path, made):
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(DataError, match="every checkpoint"):
        store.newest()
    with pytest.raises(DataError, match="every checkpoint"):
        CheckpointStore(tmp_path).newest()


class KilledError(BaseException):
    """Stands for SIGKILL: no code runs after it, not even handlers of Exception."""


WRITES = ["save_file", "save", "sync_file", "rename", "put"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("write", WRITES)
def test_killed_at_any_write_the_one_before_is_used_and_no_debris_stays(
    tmp_path, made, monkeypatch, write, before
):
    store = CheckpointStore(tmp_path)
    save(store, made, 5)
    owners = {"save": torch, "rename": module.Path, "put": LocalStorage, "sync_file": files}
    owner = owners.get(write, module)
    original = getattr(owner, write)

    def killed(*arguments, **keywords):
        if not before:
            original(*arguments, **keywords)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(owner, write, killed)
        with pytest.raises(KilledError):
            save(store, made, 10)
    committed = write == "put" and not before
    again = CheckpointStore(tmp_path, attempt=2)
    again.clean_up()
    assert again.newest().step == (10 if committed else 5)
    left = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert left == {f"step-{step:010d}" for step in again.steps()}
    assert not list(tmp_path.rglob("*.tmp-*"))
    save(again, made, 10)
    assert again.newest().step == 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("tenths", range(9))
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_checkpoint(small_disk, made, tenths):
    """The disk becomes full in each file of the checkpoint in turn."""
    store = CheckpointStore(small_disk)
    save(store, made, 5)
    size = sum(file["bytes"] for file in store.newest().manifest["files"].values())
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - size * tenths // 10))
    full = f"the disk of {small_disk}/checkpoints/step-0000000010 is full"
    with pytest.raises(UnavailableError, match=full):
        save(store, made, 10)
    assert store.newest().step == 5
    assert not list(small_disk.rglob("*.tmp-*"))
    filler.unlink()
    save(store, made, 10)
    assert store.newest().step == 10
