"""What every storage does, whichever it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smallbench.errors import ConfigError, UnavailableError
from smallbench.files import sha256_file, temporary_sibling
from smallbench.storage import open_storage
from smallbench.storage.base import (
    AlreadyExistsError,
    NotFoundError,
    Storage,
    check_path,
    is_remote,
    join,
)
from smallbench.storage.config import StorageConfig
from tests.servers.s3 import Bucket

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.fixture(
    params=["directory", "file", "moto", pytest.param("ceph", marks=pytest.mark.s3server)]
)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StorageConfig | None]:
    """An empty place of each kind."""
    if request.param == "directory":
        return str(tmp_path / "store"), None
    if request.param == "file":
        return f"file://{tmp_path}/store", None
    bucket: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return bucket.url, bucket.config


@pytest.fixture(params=[pytest.param("", marks=pytest.mark.slow), "runs/tiny"])
def storage(request: pytest.FixtureRequest, root: tuple[str, StorageConfig | None]) -> Storage:
    return open_storage(join(root[0], *request.param.split("/")), root[1])


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [stored.key for stored in storage.list(prefix)]


def twelve_mib(path: Path) -> Path:
    path.write_bytes(os.urandom(12 * MIB + 7))
    return path


# All


def test_put_objects_are_found(storage: Storage) -> None:
    before = time.time()
    storage.put("a/b.json", b"first")
    storage.put("a/b.json", b"second")
    storage.put("empty", b"")
    assert storage.get("a/b.json") == b"second"
    assert storage.get("empty") == b""
    assert storage.num_bytes("a/b.json") == 6
    found = storage.list()
    assert [(stored.key, stored.num_bytes) for stored in found] == [("a/b.json", 6), ("empty", 0)]
    assert all(abs(stored.modified_unix_seconds - before) < 60 for stored in found)


def test_a_listing_is_sorted_and_keeps_to_its_prefix(storage: Storage) -> None:
    named = ["b", "a/z", "a/B", "a-/x", "a/10", "a/9", "ä/ö ü+%&=?", "c/d/e/f"]
    for key in named:
        storage.put(key, key.encode())
    assert keys(storage) == sorted(named)
    assert keys(storage, "a/") == sorted(key for key in named if key.startswith("a/"))
    assert keys(storage, "a") == sorted(key for key in named if key.startswith("a"))
    assert keys(storage, "c/d/e") == ["c/d/e/f"]
    assert keys(storage, "none/") == []
    assert all(storage.get(key) == key.encode() for key in named)


def test_a_listing_keeps_to_its_url(root: tuple[str, StorageConfig | None]) -> None:
    url, config = root
    open_storage(join(url, "run-10"), config).put("x", b"")
    open_storage(join(url, "run-1"), config).put("y", b"")
    open_storage(url, config).put("run-1.json", b"")
    inside = open_storage(f"{url}/run-1/", config)
    assert inside.url.endswith("/run-1")
    assert keys(inside) == ["y"]
    assert keys(open_storage(url, config)) == ["run-1.json", "run-1/y", "run-10/x"]
    assert keys(open_storage(join(url, "run"), config)) == []


def test_missing_parts_are_reported(storage: Storage, tmp_path: Path) -> None:
    storage.put("there", b"x")
    assert storage.num_bytes("missing") is None
    assert storage.num_bytes("ther") is None
    with pytest.raises(NotFoundError, match="missing does not exist"):
        storage.get("missing")
    with pytest.raises(NotFoundError, match="missing does not exist"):
        storage.download("missing", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_only_new_never_replaces(storage: Storage) -> None:
    storage.put("lock", b"first", only_new=True)
    with pytest.raises(AlreadyExistsError, match="lock exists already"):
        storage.put("lock", b"second", only_new=True)
    with pytest.raises(AlreadyExistsError):
        storage.put("lock", b"first", only_new=True)  # not even by the same
    assert storage.get("lock") == b"first"
    storage.put("lock", b"third")
    assert storage.get("lock") == b"third"
    assert keys(storage) == ["lock"]


def test_of_writers_that_race_exactly_one_wins(storage: Storage) -> None:
    start = threading.Barrier(8)

    def write(number: int) -> int | None:
        start.wait()
        try:
            storage.put("race/lock", b"writer %d" % number, only_new=True)
        except AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]
    assert len(winners) == 1
    assert storage.get("race/lock") == b"writer %d" % winners[0]
    assert keys(storage) == ["race/lock"]


def test_a_file_of_several_parts_travels_whole(storage: Storage, tmp_path: Path) -> None:
    path = twelve_mib(tmp_path / "large")
    storage.upload(path, "deep/down/large")
    assert storage.num_bytes("deep/down/large") == 12 * MIB + 7
    (tmp_path / "back").write_bytes(b"of an earlier download " * MIB)
    storage.download("deep/down/large", tmp_path / "back")
    assert sha256_file(tmp_path / "back") == sha256_file(path)
    (tmp_path / "empty").touch()
    storage.upload(tmp_path / "empty", "deep/down/large")
    storage.download("deep/down/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""
    assert storage.abort_uploads() == 0


def test_errors_of_the_caller_are_not_reported_as_the_storages(
    storage: Storage, tmp_path: Path
) -> None:
    storage.put("there", b"x")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "key")
    with pytest.raises(FileNotFoundError):
        storage.download("there", tmp_path / "missing" / "x")
    assert keys(storage) == ["there"]


def test_deleting_a_missing_object_is_not_an_error(storage: Storage) -> None:
    storage.put("a/b/c", b"x")
    storage.put("a/d", b"x")
    storage.delete(["a/b/c", "missing", "a/b/c", "a/b/missing"])
    assert keys(storage) == ["a/d"]
    storage.delete([])
    storage.delete(("a/d",))
    assert keys(storage) == []
    storage.put("a/b/c", b"again")
    assert keys(storage) == ["a/b/c"]


@pytest.mark.slow
def test_more_is_deleted_and_listed_than_one_request_may_name(
    root: tuple[str, StorageConfig | None],
) -> None:
    storage = open_storage(join(root[0], "many"), root[1])
    many = [f"part-{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.put(key, b""), many))
    storage.put("rest", b"")
    assert keys(storage, "part-") == many
    storage.delete(many)
    assert keys(storage) == ["rest"]


def test_a_check_passes_and_leaves_nothing(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.check()
    storage.check()
    assert keys(storage) == []
    assert capsys.readouterr().err == ""


def test_a_url_says_which_storage_it_is() -> None:
    remote = (
        "s3://b/p",
        "s3://b",
        "s3://b/p/",
        "file:///p",
        "s3://arn:aws:s3:eu-1:1:accesspoint:a",
    )
    assert all(is_remote(url) for url in remote)
    assert not any(
        is_remote(path) for path in ("/p", "p", "a:b", "./s3", "hub:org/name", "hub:/data", "run.1")
    )
    assert join("s3://bucket/", "a/", "/b") == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "url",
    [
        *("s3://", "s3:///runs", "s3:/lab/runs", "s3:lab", "S3://lab/runs", "s3a://lab"),
        *("s3://lab//runs", "s3://lab/../x", "s3://lab/./x", "s3://la b/x", "s3://lab/x\n"),
        *(" s3://lab/x", '"s3://lab/x"', "gs://bucket", "http://host/path", "hdfs:/x", "az://c"),
        *("file:", "file:x", "file:/x", "file://", "file:///", "file://host/path", "", "  "),
    ],
)
def test_a_value_like_a_url_is_a_valid_url_or_refused(
    url: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (is_remote, open_storage, lambda url: join(url, "run")):
        with pytest.raises(ConfigError, match=r"expected s3://BUCKET/PREFIX|is empty"):
            call(url)
    with pytest.raises(ConfigError):
        check_path(Path(url.strip() or "s3:/x"), name="--out")
    assert list(tmp_path.iterdir()) == []


def test_boto3_is_imported_only_where_it_is_used() -> None:
    program = (
        "import sys; from smallbench.storage import open_storage; open_storage('x').list(); "
        "print(any(m.startswith('boto') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


# A directory


def test_files_of_killed_writers_are_hidden_and_deleted(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("checkpoints/whole", b"x")
    debris = [temporary_sibling(tmp_path / name) for name in ("checkpoints/half", "half")]
    for path in debris:
        path.write_bytes(b"hal")
    assert keys(storage) == ["checkpoints/whole"]
    assert storage.abort_uploads("checkpoints/") == 1
    assert not debris[0].exists()
    assert storage.abort_uploads() == 1
    assert keys(storage) == ["checkpoints/whole"]


def test_directories_that_a_killed_delete_left_empty_go_with_the_debris(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("checkpoints/whole/file", b"x")
    (tmp_path / "checkpoints/emptied/attempt-0001").mkdir(parents=True)
    storage.abort_uploads("commits/")
    assert (tmp_path / "checkpoints/emptied/attempt-0001").exists()
    storage.abort_uploads()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["whole"]
    storage.delete(["checkpoints/whole/file"])
    storage.abort_uploads()
    assert tmp_path.is_dir()


def test_without_hard_links_it_looks_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = open_storage(str(tmp_path))
    storage.put("lock", b"first", only_new=True)
    with pytest.raises(AlreadyExistsError):
        storage.put("lock", b"second", only_new=True)
    assert storage.get("lock") == b"first"
    assert "would not notice each other" in capsys.readouterr().err
    assert keys(storage) == ["lock"]


def test_a_directory_may_be_deleted_while_another_writes_to_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    end = time.monotonic() + 1

    def churn(number: int) -> None:
        while time.monotonic() < end:
            storage.put(f"shared/{number}", b"x")
            storage.delete([f"shared/{number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert keys(storage) == []


def test_a_file_in_the_way_is_a_contradiction(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = open_storage(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="a file or below one, but a directory is needed"):
        storage.check()
    with pytest.raises(ConfigError, match="a file or below one, but a directory is needed"):
        storage.put("a/b", b"")


def test_a_directory_that_cannot_be_made_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"Could not create /proc/x \(No such file"):
        open_storage("/proc/x").check()
