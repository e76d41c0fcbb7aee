"""Preparing to a URL is preparing and publishing, and the same command goes on if interrupted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from smallbench.data.prepare import prepare, prepare_remote
from smallbench.data.shards import Manifest, corpus_summary, verify_shards
from smallbench.data.transfer import MARK, local_corpus, publish_corpus
from smallbench.errors import ConfigError, ConflictError, DataError, InterruptedRunError
from smallbench.files import exclusive_lock
from smallbench.stop import Stop
from smallbench.storage import open_storage
from smallbench.storage.base import join
from smallbench.storage.local import LocalStorage
from tests.data.conftest import CONFIG
from tests.data.test_prepare import content


@pytest.fixture
def prepare_there(configs, url: str, tmp_path: Path):
    def call(config=configs["wordpiece"], **options) -> Manifest:
        cache = tmp_path / "cache"
        return prepare_remote(config, url=url, storage=CONFIG, cache=cache, workers=1, **options)

    return call


def test_preparing_to_a_url_is_preparing_and_publishing(
    prepare_there, configs, url: str, objects: Path, tmp_path: Path, pull, log, capsys
):
    manifest = prepare_there()
    prepare(configs["wordpiece"], out=tmp_path / "here", workers=1)
    assert content(objects) == content(tmp_path / "here")
    assert f"--data={url}" in corpus_summary(manifest, url)
    log.clear()
    assert content(pull()) == content(objects)
    assert log == [], "the copy that was published is the one in the cache"
    assert prepare_there() == manifest
    assert log == []
    assert "already prepared" in capsys.readouterr().out


def test_interrupted_anywhere_the_same_command_ends_with_the_same_objects(
    prepare_there, configs, objects: Path, tmp_path: Path, monkeypatch
):
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        prepare_there(stop=Stop(lambda: True))
    assert not (objects / "manifest.json").exists()
    real = LocalStorage.upload

    def fail_at_a_shard(self, path, key):
        if key == "eval-00000.bin":
            raise KeyboardInterrupt
        real(self, path, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "upload", fail_at_a_shard)
        with pytest.raises(KeyboardInterrupt):
            prepare_there()
    assert not (objects / "manifest.json").exists()
    with monkeypatch.context() as patch:  # what is prepared is not prepared again
        patch.setattr("smallbench.data.prepare._Preparation.run", None)
        prepare_there()
    prepare(configs["wordpiece"], out=tmp_path / "here", workers=1)
    assert content(objects) == content(tmp_path / "here")


def test_a_wrong_url_is_refused_before_any_work(
    prepare_there, configs, tmp_path: Path, objects: Path
):
    prepare_there()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"sequence_length 32 → 64.*another --out"):
        prepare_there(replace(configs["wordpiece"], sequence_length=64))
    assert not (tmp_path / "cache").exists()


def test_a_second_process_is_refused(prepare_there, tmp_path: Path, url: str):
    with pytest.raises(InterruptedRunError):
        prepare_there(stop=Stop(lambda: True))
    (lock,) = (tmp_path / "cache" / "prepare").glob("*.lock")
    with exclusive_lock(lock, "taken"), pytest.raises(ConflictError, match="--out"):
        prepare_there()


@pytest.mark.slow
def test_a_corpus_goes_through_a_bucket(s3_bucket, configs, prepared, tmp_path: Path):
    config = s3_bucket.config
    url = join(s3_bucket.url, "text", "tiny")
    publish_corpus(prepared["bpe"], url, config)
    pulled = local_corpus(url, config, cache=tmp_path / "a")
    assert content(pulled) == content(prepared["bpe"])
    verify_shards(pulled)
    url = join(s3_bucket.url, "text", "prepared")
    prepare_remote(configs["wordpiece"], url=url, storage=config, cache=tmp_path / "b", workers=1)
    pulled = local_corpus(url, config, cache=tmp_path / "c")
    assert content(pulled) == content(local_corpus(url, config, cache=tmp_path / "b"))
    storage = open_storage(url, config)
    assert storage.num_bytes(MARK) is None
    storage.put("train-00000.bin", b"damaged")
    with pytest.raises(DataError, match=r"train-00000\.bin does not match its manifest"):
        local_corpus(url, config, cache=tmp_path / "d")
    with pytest.raises(ConfigError, match="another corpus"):
        publish_corpus(prepared["bpe"], url, config)
