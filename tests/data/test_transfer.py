"""A corpus is the same wherever it travelled, and half of one is never taken for a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smallbench.data.shards import Manifest, TokenRows, verify_shards
from smallbench.data.tokenizer import Tokenizer, file_fingerprint
from smallbench.data.transfer import MARK, cache_directory, local_corpus, publish_corpus
from smallbench.errors import ConfigError, DataError, InterruptedRunError
from smallbench.files import TEMPORARY_MARK, exclusive_lock, waiting_lock
from smallbench.stop import Stop
from smallbench.storage.local import LocalStorage
from tests.data.conftest import CONFIG, KINDS
from tests.data.test_prepare import content


@pytest.fixture
def directory(prepared) -> Path:
    return prepared["wordpiece"]


def flip(path: Path) -> None:
    """Damage that keeps the size."""
    with path.open("rb+") as stream:
        byte = stream.read(1)
        stream.seek(0)
        stream.write(bytes([byte[0] ^ 1]))


def keys(log: list[tuple[str, str]], name: str) -> list[str]:
    return [key for done, key in log if done == name]


# A round trip


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_gives_equal_bytes_to_train_from(kind: str, prepared, url: str, pull):
    publish_corpus(prepared[kind], url, CONFIG)
    pulled = pull()
    assert content(pulled) == content(prepared[kind])
    verify_shards(pulled)
    theirs, ours = TokenRows(prepared[kind], "train"), TokenRows(pulled, "train")
    order = np.arange(len(theirs))
    assert np.array_equal(ours.take(order), theirs.take(order))
    assert Tokenizer.load(pulled / "tokenizer").fingerprint == ours.tokenizer.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_of_a_file_is_that_of_its_tokenizer(kind: str, prepared):
    folder = prepared[kind] / "tokenizer"
    assert file_fingerprint(folder / "tokenizer.json") == Tokenizer.load(folder).fingerprint


def test_a_local_path_is_returned_as_it_is(tmp_path: Path):
    for path in (tmp_path, str(tmp_path), "nowhere/yet"):
        assert local_corpus(path, CONFIG, cache=tmp_path / "cache") == Path(path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_the_given_the_variables_or_the_homes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert cache_directory() == Path("/home/of/somebody/.cache/smallbench")
    monkeypatch.setenv("SMALLBENCH_CACHE", "~/elsewhere")
    assert cache_directory() == Path("/home/of/somebody/elsewhere")
    assert cache_directory(tmp_path) == tmp_path


def test_equal_corpora_share_a_place_and_a_changed_one_gets_its_own(prepared, tmp_path, log):
    first, second, other = (f"file://{tmp_path}/{name}" for name in "abc")
    publish_corpus(prepared["wordpiece"], first, CONFIG)
    publish_corpus(prepared["wordpiece"], second, CONFIG)
    publish_corpus(prepared["bpe"], other, CONFIG)
    places = [local_corpus(first, CONFIG, cache=tmp_path / "cache")]
    log.clear()
    places.append(local_corpus(second, CONFIG, cache=tmp_path / "cache"))
    assert log == []
    places.append(local_corpus(other, CONFIG, cache=tmp_path / "cache"))
    assert places[0] == places[1] != places[2]


# The manifest comes last, in both directions


def test_the_manifest_is_published_last(directory: Path, url: str, log):
    publish_corpus(directory, url, CONFIG)
    written = [key for done, key in log if done in {"put", "upload"}]
    assert written[0] == MARK
    assert written[-1] == "manifest.json"
    assert set(written) == {*content(directory), MARK}
    assert log[-1] == ("delete", MARK)


def test_before_the_manifest_there_is_no_corpus(directory: Path, url: str, objects: Path, pull):
    with pytest.raises(DataError, match=r"is not a prepared corpus \(it has no manifest\.json\)"):
        pull()
    with pytest.raises(InterruptedRunError, match="the same command"):
        publish_corpus(directory, url, CONFIG, stop=Stop(lambda: True))
    with pytest.raises(DataError, match="is not a prepared corpus"):
        pull()


def test_a_pull_writes_the_manifest_last(directory: Path, url: str, tmp_path: Path, monkeypatch):
    publish_corpus(directory, url, CONFIG)
    real = LocalStorage.download

    def download(self, key, path):
        assert not list(tmp_path.glob("cache/**/manifest.json"))
        real(self, key, path)

    monkeypatch.setattr(LocalStorage, "download", download)
    assert Manifest.read(local_corpus(url, CONFIG, cache=tmp_path / "cache"))


# What was interrupted goes on


KILLED = """
import os, sys
from pathlib import Path
from smallbench.data.transfer import local_corpus, publish_corpus
from smallbench.storage.config import StorageConfig
from smallbench.storage.local import LocalStorage

what, directory, url, cache, survives = *sys.argv[1:5], int(sys.argv[5])
real = getattr(LocalStorage, what)
count = 0

def dying(self, first, second):
    global count
    count += 1
    if count > survives:
        if what == "download":
            second.write_bytes(b"half")
        os._exit(9)
    real(self, first, second)

setattr(LocalStorage, what, dying)
if what == "download":
    local_corpus(url, StorageConfig(), cache=Path(cache))
else:
    publish_corpus(Path(directory), url, StorageConfig())
"""


def kill_in(what: str, survives: int, directory: Path, url: str, cache: Path) -> None:
    """Die in the `survives + 1`st upload or download."""
    words = [what, str(directory), url, str(cache), str(survives)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    assert done.returncode == 9


def test_a_killed_pull_downloads_only_missing_files(
    directory: Path, url: str, tmp_path: Path, pull, log
):
    publish_corpus(directory, url, CONFIG)
    cache = tmp_path / "cache"
    kill_in("download", 2, directory, url, cache)
    assert len(list(cache.rglob(f"*{TEMPORARY_MARK}*"))) == 1
    log.clear()
    pulled = pull()
    assert content(pulled) == content(directory)
    shards = [shard.name for shard in Manifest.read(directory).shards]
    assert keys(log, "download") == shards[1:]  # the tokenizer and the first were there
    assert not list(cache.rglob(f"*{TEMPORARY_MARK}*"))
    log.clear()
    assert pull() == pulled
    assert log == []


def test_a_killed_upload_sends_only_missing_files(directory: Path, url: str, log, pull):
    kill_in("upload", 3, directory, url, directory)
    publish_corpus(directory, url, CONFIG)
    assert len(keys(log, "upload")) == len(content(directory)) - 1 - 3  # 1: the manifest
    assert content(pull()) == content(directory)
    log.clear()
    publish_corpus(directory, url, CONFIG)
    assert keys(log, "upload") == keys(log, "put") == []


def test_a_stop_ends_after_a_complete_file_and_the_same_call_continues(
    directory: Path, url: str, tmp_path: Path, log
):
    publish_corpus(directory, url, CONFIG)
    log.clear()
    answers = iter([False, True])
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        local_corpus(url, CONFIG, cache=tmp_path, stop=Stop(lambda: next(answers)))
    local_corpus(url, CONFIG, cache=tmp_path)
    assert len(set(keys(log, "download"))) == len(log)


def test_an_object_that_was_lost_is_published_again(directory: Path, url: str, objects: Path, log):
    publish_corpus(directory, url, CONFIG)
    (objects / "train-00001.bin").unlink()
    log.clear()
    publish_corpus(directory, url, CONFIG)
    assert keys(log, "upload") == ["train-00001.bin"]
    assert content(objects) == content(directory)


def test_a_file_that_the_cache_lost_is_fetched_again(directory: Path, url: str, pull, log):
    publish_corpus(directory, url, CONFIG)
    pulled = pull()
    (pulled / "train-00001.bin").unlink()
    log.clear()
    assert content(pull()) == content(directory)
    assert keys(log, "download") == ["train-00001.bin"]


def test_of_two_processes_one_pulls_and_the_other_waits(directory: Path, url: str, pull, log):
    publish_corpus(directory, url, CONFIG)
    pulled = pull()
    shutil.rmtree(pulled)
    log.clear()
    lock, found = pulled.with_name(f"{pulled.name}.lock"), []
    threads = [threading.Thread(target=lambda: found.append(pull())) for _ in range(2)]
    with exclusive_lock(lock, "taken"):
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert found == []
        assert log == []
    for thread in threads:
        thread.join(30)
    assert found == [pulled, pulled]
    assert len(set(keys(log, "download"))) == len(log) > 2


def test_a_waiting_lock_says_why_it_waits(tmp_path: Path, capsys):
    with waiting_lock(tmp_path / "lock", "why"):
        pass
    assert capsys.readouterr().err == ""
    got = threading.Event()

    def wait() -> None:
        with waiting_lock(tmp_path / "lock", "why"):
            got.set()

    thread = threading.Thread(target=wait)
    with exclusive_lock(tmp_path / "lock", "taken"):
        thread.start()
        assert not got.wait(0.2)
    assert got.wait(30)
    thread.join()
    assert capsys.readouterr().err == "why\n"


# Damage


def test_a_file_that_arrived_damaged_is_fetched_again(directory: Path, url, pull, monkeypatch, log):
    publish_corpus(directory, url, CONFIG)
    log.clear()
    spied, seen = LocalStorage.download, set()

    def damaged_at_first(self, key, path):
        spied(self, key, path)
        if key not in seen:
            flip(path)
        seen.add(key)

    monkeypatch.setattr(LocalStorage, "download", damaged_at_first)
    assert content(pull()) == content(directory)
    assert len(keys(log, "download")) == 2 * len(set(keys(log, "download")))


@pytest.mark.parametrize("name", ["train-00001.bin", "eval-00000.bin", "tokenizer/tokenizer.json"])
def test_a_damaged_object_is_one_sentence(
    name: str, directory: Path, url: str, objects: Path, tmp_path: Path, pull, log
):
    publish_corpus(directory, url, CONFIG)
    flip(objects / name)
    log.clear()
    with pytest.raises(DataError, match=rf"/{name} does not match its manifest.*delete .* prepare"):
        pull()
    assert keys(log, "download").count(name) == 2
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert not list((tmp_path / "cache").rglob(f"*{TEMPORARY_MARK}*"))
    (objects / name).unlink()
    with pytest.raises(DataError, match=rf"/{name} is missing.*prepare"):
        pull()


def test_damage_in_an_unfinished_cache_is_found(directory: Path, url: str, pull, log):
    publish_corpus(directory, url, CONFIG)
    pulled = pull()
    (pulled / "manifest.json").unlink()
    flip(pulled / "train-00000.bin")
    flip(pulled / "tokenizer" / "tokenizer.json")
    log.clear()
    assert content(pull()) == content(directory)
    assert keys(log, "download") == ["tokenizer/tokenizer.json", "train-00000.bin"]


@pytest.mark.parametrize("name", ["train-00000.bin", "tokenizer/tokenizer.json"])
def test_a_damaged_corpus_is_not_published(
    name: str, directory: Path, url: str, objects: Path, tmp_path: Path
):
    copy = shutil.copytree(directory, tmp_path / "copy")
    flip(copy / name)
    with pytest.raises(DataError, match="manifest"):
        publish_corpus(copy, url, CONFIG)
    assert not objects.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_an_invalid_manifest_is_one_sentence(text: str, objects: Path, pull):
    objects.mkdir(parents=True)
    (objects / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json (is damaged|has schema 99)"):
        pull()


def test_a_shards_name_does_not_lead_elsewhere(directory: Path, url, objects: Path, tmp_path, pull):
    publish_corpus(directory, url, CONFIG)
    manifest = Manifest.read(objects)
    away = replace(manifest.shards[0], name="../../../escaped.bin")
    replace(manifest, shards=[away]).write(objects)
    with pytest.raises(DataError, match="is not the name of a shard"):
        pull()
    assert not list(tmp_path.rglob("escaped*"))


# What is not ours stays


def test_another_corpus_at_the_url_is_refused(prepared, url: str, objects: Path):
    publish_corpus(prepared["wordpiece"], url, CONFIG)
    with pytest.raises(ConfigError, match=r"another corpus.*choose another --out, or delete"):
        publish_corpus(prepared["bpe"], url, CONFIG)
    assert content(objects) == content(prepared["wordpiece"])


def test_half_of_another_corpus_is_neither_taken_nor_overwritten(prepared, url, objects: Path):
    kill_in("upload", 2, prepared["wordpiece"], url, objects)
    before = content(objects)
    with pytest.raises(ConfigError, match="another corpus is on its way"):
        publish_corpus(prepared["bpe"], url, CONFIG)
    assert content(objects) == before


def test_a_foreign_shard_is_neither_taken_nor_overwritten(directory, url: str, objects: Path):
    objects.mkdir(parents=True)
    size = (directory / "train-00000.bin").stat().st_size
    (objects / "train-00000.bin").write_bytes(b"x" * size)
    with pytest.raises(ConfigError, match=r"holds train-00000\.bin"):
        publish_corpus(directory, url, CONFIG)
    assert content(objects) == {"train-00000.bin": b"x" * size}
