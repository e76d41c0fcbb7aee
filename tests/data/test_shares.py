"""Several machines prepare one corpus: the bytes of a single one, whatever is interrupted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from smallbench.data import installed_docs
from smallbench.data import prepare as prepare_module
from smallbench.data import shares as shares_module
from smallbench.data import source as source_module
from smallbench.data.config import PrepareConfig
from smallbench.data.corpus import deal_in_runs
from smallbench.data.prepare import prepare
from smallbench.data.shares import prepare_share
from smallbench.data.transfer import local_corpus
from smallbench.errors import ConfigError, InterruptedRunError
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from smallbench.storage.config import StorageConfig
from tests.data.test_prepare import content
from tests.servers.s3 import Bucket

COUNT = 3


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(prepare_module, "COMMIT_BYTES", 9000)
    monkeypatch.setattr(shares_module, "POLL_SECONDS", 0.05)


@pytest.fixture
def texts(documents: list[str], tmp_path: Path) -> Path:
    """A folder of files in subfolders, with documents twice in different files, and a bad file."""
    folder = tmp_path / "texts"
    for number in range(7):
        path = folder / ("ab"[number % 2]) / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(documents[number * 20 : number * 20 + 30]))
    (folder / "a" / "3.jsonl").write_text('{"text": 1}\n{"no": "text"}\n')
    (folder / "b" / "binary.txt").write_bytes(b"\0" * 100)
    (folder / "picture.png").write_bytes(b"\x89PNG none of ours")
    return folder


@pytest.fixture
def config(texts: Path) -> PrepareConfig:
    return PrepareConfig(
        corpus=str(texts),
        vocab_size=500,
        tokenizer_sample_bytes=20_000,
        sequence_length=32,
        eval_fraction=0.1,
        min_characters=60,
    )


def share(
    config: PrepareConfig,
    number: int,
    out: str,
    tmp_path: Path,
    storage: StorageConfig | None = None,
    stop: Stop = NEVER,
    count: int = COUNT,
):
    """A machine with a disk of its own."""
    return prepare_share(
        config,
        out=out,
        number=number,
        count=count,
        storage=storage or StorageConfig(),
        cache=tmp_path / f"machine-{number}",
        workers=1,
        stop=stop,
    )


def all_shares(config: PrepareConfig, out: str, tmp_path: Path, storage=None, count: int = COUNT):
    with ThreadPoolExecutor(count) as pool:
        running = [
            pool.submit(share, config, number, out, tmp_path, storage, count=count)
            for number in range(1, count + 1)
        ]
        return [done.result(timeout=120) for done in running]


@pytest.mark.parametrize(
    "count", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 12))]
)
def test_shares_make_the_bytes_of_one_machine(config: PrepareConfig, tmp_path: Path, count: int):
    """12: more shares than files."""
    prepare(config, out=tmp_path / "one", workers=1)
    out = tmp_path / "shared"
    manifests = all_shares(config, str(out), tmp_path, count=count)
    assert content(out) == content(tmp_path / "one")
    assert manifests[0] is not None
    assert manifests[0].counts["duplicates"] > 0
    assert manifests[0].counts["skipped"] == 4
    assert manifests[1:] == [None] * (count - 1)
    assert not list(Path(f"{out}.shares").rglob("*.npz"))


def test_a_given_tokenizer_needs_no_samples(
    config: PrepareConfig, tokenizer_directory: Path, tmp_path: Path
):
    config = replace(config, tokenizer=str(tokenizer_directory))
    prepare(config, out=tmp_path / "one", workers=1)
    all_shares(config, str(tmp_path / "shared"), tmp_path)
    assert content(tmp_path / "shared") == content(tmp_path / "one")


def test_a_source_without_files_is_the_first_ones_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    few = list(islice(installed_docs.module_sources(), 12))
    monkeypatch.setattr(installed_docs, "module_sources", lambda: iter(few))
    config = PrepareConfig(corpus="installed-docs", vocab_size=600, tokenizer_sample_bytes=50_000)
    prepare(config, out=tmp_path / "one", workers=1)
    all_shares(config, str(tmp_path / "shared"), tmp_path, count=2)
    assert content(tmp_path / "shared") == content(tmp_path / "one")


@pytest.mark.slow
def test_corpus_and_result_in_a_bucket(config: PrepareConfig, s3_bucket: Bucket, tmp_path: Path):
    """The same rows and tokenizer as from a local folder."""
    prepare(config, out=tmp_path / "one", workers=1)
    storage = open_storage(f"{s3_bucket.url}/text", s3_bucket.config)
    for path in Path(config.corpus).rglob("*.*"):
        storage.upload(path, path.relative_to(config.corpus).as_posix())
    there = replace(config, corpus=storage.url)
    all_shares(there, f"{s3_bucket.url}/corpus", tmp_path, s3_bucket.config)
    local = local_corpus(f"{s3_bucket.url}/corpus", s3_bucket.config, cache=tmp_path / "reader")
    found, expected = content(local), content(tmp_path / "one")
    found.pop("manifest.json"), expected.pop("manifest.json")  # they name their sources
    assert found == expected
    left = open_storage(s3_bucket.url, s3_bucket.config).list("corpus.shares")
    assert left == []


class StopAt(Stop):
    """Says yes at its nth question, and ever after."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (number, after)
        if (number, after) in {(1, 5), (2, 2)}
        else pytest.param(number, after, marks=pytest.mark.slow)
        for number in (1, 2)
        for after in (0, 2, 5, 9)
    ],
)
def test_an_interrupted_share_continues_on_another_machine(
    config: PrepareConfig, tmp_path: Path, number: int, after: int
):
    """At another machine with an empty disk, at any moment: in the sample, waiting, in a chunk."""
    prepare(config, out=tmp_path / "one", workers=1)
    out = str(tmp_path / "shared")
    others = [n for n in range(1, COUNT + 1) if n != number]
    with ThreadPoolExecutor(COUNT) as pool:
        running = [pool.submit(share, config, n, out, tmp_path / "a") for n in others]
        with pytest.raises(InterruptedRunError):
            share(config, number, out, tmp_path / "b", stop=StopAt(after))
        share(config, number, out, tmp_path / "c")
        for done in running:
            done.result(timeout=120)
    assert content(tmp_path / "shared") == content(tmp_path / "one")


def test_packed_chunks_are_not_packed_again(
    config: PrepareConfig, tokenizer_directory: Path, tmp_path: Path
):
    config = replace(config, tokenizer=str(tokenizer_directory))
    out = str(tmp_path / "shared")
    with pytest.raises(InterruptedRunError):
        share(config, 2, out, tmp_path / "a", stop=StopAt(1))
    stamps = {p: p.stat().st_mtime_ns for p in Path(f"{out}.shares").rglob("*.npz")}
    assert len(stamps) == 2
    share(config, 2, out, tmp_path / "b")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_finished_corpus_is_found_by_a_late_share(config: PrepareConfig, tmp_path: Path):
    out = str(tmp_path / "shared")
    first = all_shares(config, out, tmp_path)[0]
    assert share(config, 3, out, tmp_path / "late") == first
    with pytest.raises(ConfigError, match="vocab_size"):
        share(replace(config, vocab_size=501), 3, out, tmp_path / "late")


def test_a_first_share_stopped_after_the_corpus_leaves_nothing(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its successor deletes the shares, so that another command finds none of them."""
    out = tmp_path / "shared"

    def killed(*_):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(shares_module, "_delete", killed)
        with pytest.raises(InterruptedError):
            all_shares(config, str(out), tmp_path)
    left = open_storage(f"{out}.shares", StorageConfig())
    assert left.list()
    share(config, 2, str(out), tmp_path / "late")
    assert left.list()
    assert share(config, 1, str(out), tmp_path / "late") is not None
    assert left.list() == []


def test_shares_of_different_commands_are_refused(config: PrepareConfig, tmp_path: Path):
    out, ready = str(tmp_path / "shared"), threading.Event()
    ready.set()
    with pytest.raises(InterruptedRunError):
        share(config, 2, out, tmp_path, stop=Stop(ready.is_set))
    with pytest.raises(ConfigError, match="sequence_length"):
        share(replace(config, sequence_length=64), 1, out, tmp_path)
    with pytest.raises(ConfigError, match="shares 3 → 4"):
        share(config, 1, out, tmp_path, count=4)
    with pytest.raises(ConfigError, match="max_documents"):
        share(replace(config, max_documents=5), 1, out, tmp_path)


def test_files_are_dealt_in_runs_of_about_equal_size():
    assert deal_in_runs([1] * 6, 3) == [1, 1, 2, 2, 3, 3]
    assert deal_in_runs([10, 1, 1, 1], 2) == [1, 2, 2, 2]
    assert deal_in_runs([5], 4) == [3]
    assert deal_in_runs([], 4) == []
    sizes = [(7 * i) % 13 + 1 for i in range(200)]
    dealt = deal_in_runs(sizes, 8)
    assert dealt == sorted(dealt)
    loads = [sum(s for s, d in zip(sizes, dealt, strict=True) if d == k) for k in range(1, 9)]
    assert max(loads) - min(loads) <= 2 * max(sizes)
