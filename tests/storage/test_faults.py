"""Between us and the store things break: a call then ends right or says so, and nothing is half.

What an outage may never look like is a missing object: a run that believed it would start anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smallbench import retry
from smallbench.errors import CredentialsError, UnavailableError
from smallbench.storage import open_storage, s3
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage
from smallbench.storage.s3 import S3Storage
from tests.servers.proxy import (
    Answer,
    CutRequest,
    CutResponse,
    Fault,
    Gone,
    LoseAnswer,
    Proxy,
    Stall,
)
from tests.servers.s3 import Bucket

MIB = 1 << 20
OLD, NEW = os.urandom(6 * MIB + 7), os.urandom(11 * MIB)

FAULTS = [
    Answer(503),
    Answer(403),
    CutRequest(after_bytes=100_000),
    CutResponse(after_bytes=100),
    LoseAnswer(),
    Stall(seconds=60),
    Gone(),
]


pytestmark = pytest.mark.usefixtures("small_and_quick")


@dataclass(frozen=True)
class Place:
    """One store, seen directly and through what breaks, for which one client hardly waits."""

    proxy: Proxy
    through: Storage
    direct: Storage
    impatient: Storage


@pytest.fixture
def place(
    s3_bucket: Bucket, proxy: Callable[[Bucket], Proxy], monkeypatch: pytest.MonkeyPatch
) -> Place:
    started = proxy(s3_bucket)
    url, config = f"{s3_bucket.url}/run", s3_bucket.behind(started).config
    direct = open_storage(url, s3_bucket.config)
    direct.put("small", b"old")
    direct.put("doomed", b"x")
    through = open_storage(url, config)
    with monkeypatch.context() as patch:  # not for `through`, which connects again after a 403
        patch.setattr(s3, "READ_TIMEOUT_SECONDS", 0.1)
        impatient = open_storage(url, config)
    return Place(started, through, direct, impatient)


@pytest.fixture
def large(place: Place, tmp_path: Path) -> Path:
    """Holds the file `new`, of several parts; the object `large` is as large, but older."""
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(NEW)
    place.direct.upload(tmp_path / "old", "large")
    return tmp_path


def content(storage: Storage, key: str, folder: Path) -> bytes:
    storage.download(key, folder / "seen")
    return (folder / "seen").read_bytes()


def calls(storage: Storage, folder: Path) -> dict[str, Callable[[], object]]:
    """Every call of the protocol, ending in what it found or wrote."""

    def downloaded() -> bytes:
        return content(storage, "large", folder)

    return {
        "list": lambda: [stored.key for stored in storage.list("s")],
        "get": lambda: storage.get("small"),
        "num_bytes": lambda: storage.num_bytes("large"),
        "put": lambda: storage.put("small", b"new"),
        "put_new": lambda: storage.put("lock", b"mine", only_new=True),
        "download": downloaded,
        "upload": lambda: storage.upload(folder / "new", "large"),
        "delete": lambda: storage.delete(["doomed"]),
        "abort_uploads": lambda: storage.abort_uploads("none/"),
        "check": storage.check,
    }


RIGHT = {
    "list": ["small"],
    "get": b"old",
    "num_bytes": len(OLD),
    "download": OLD,
    "abort_uploads": 0,
}


def some(faults: list[Fault], *, first: tuple[type, ...]) -> Any:
    """Cases of these faults; those of other kinds than `first` are for the tests of minutes."""
    return pytest.mark.parametrize(
        "fault",
        [f if isinstance(f, first) else pytest.param(f, marks=pytest.mark.slow) for f in faults],
        ids=str,
    )


@some(FAULTS, first=(CutResponse, LoseAnswer, Gone))
def test_a_call_ends_right_or_says_so_while_all_requests_fail(
    fault: Fault, place: Place, large: Path
) -> None:
    refused = isinstance(fault, Answer) and fault.status == 403
    failing = place.impatient if isinstance(fault, Stall) else place.through
    for name, call in calls(failing, large).items():
        with place.proxy.failing(fault):
            try:
                assert call() == RIGHT.get(name)
            except UnavailableError:
                assert not refused, name
            except CredentialsError:
                assert refused, name
        assert place.direct.get("small") in (b"old", b"new")
        lock = place.direct.num_bytes("lock")
        assert lock is None or place.direct.get("lock") == b"mine"
        if name == "upload":
            assert content(place.direct, "large", large) in (OLD, NEW)
            # Whether it was written or not, an upload that broke off is not in the way.
            place.direct.upload(large / "old", "large")
        place.direct.put("small", b"old")
    assert place.proxy.num_faults > 0 or isinstance(fault, Gone)

    place.direct.delete(["lock"])
    for name, call in calls(place.through, large).items():
        assert call() == RIGHT.get(name), name
    assert place.direct.get("small") == b"new"
    assert place.direct.get("lock") == b"mine"
    assert place.direct.num_bytes("doomed") is None
    assert content(place.direct, "large", large) == NEW


@some([Answer(503), CutRequest(100_000), CutResponse(100), LoseAnswer()], first=(LoseAnswer,))
def test_one_request_that_fails_is_never_noticed(fault: Fault, place: Place, large: Path) -> None:
    for name, call in calls(place.through, large).items():
        with place.proxy.failing(fault, times=1):
            assert call() == RIGHT.get(name), name
    assert place.direct.get("small") == b"new"
    assert place.direct.get("lock") == b"mine"
    assert content(place.direct, "large", large) == NEW


@some([Answer(503), Gone()], first=(Gone,))
def test_an_outage_of_a_second_is_ridden_out(
    fault: Fault, place: Place, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "DELAYS_SECONDS", (0.5, 1, 2, 4))
    for name in ("list", "upload"):
        place.proxy.fail_for(0.6, fault)
        assert calls(place.through, large)[name]() == RIGHT.get(name)
    assert content(place.direct, "large", large) == NEW


@some(
    [CutRequest(3 * MIB), CutResponse(3 * MIB), Answer(503), LoseAnswer()],
    first=(CutRequest, CutResponse),
)
def test_a_transfer_survives_breaks_in_the_middle(fault: Fault, place: Place, large: Path) -> None:
    matching = "GET" if isinstance(fault, CutResponse) else "PUT .*partNumber=2"
    with place.proxy.failing(fault, times=1, matching=matching):
        if isinstance(fault, CutResponse):
            assert content(place.through, "large", large) == OLD
        else:
            place.through.upload(large / "new", "large")
            assert content(place.direct, "large", large) == NEW
    assert place.proxy.num_faults == 1


def test_a_truncated_body_is_not_taken_for_content(place: Place, large: Path) -> None:
    place.direct.put("json", b'{"a": 1}' * 100)
    with place.proxy.failing(CutResponse(8)), pytest.raises(UnavailableError):
        place.through.get("json")
    assert place.through.get("json") == b'{"a": 1}' * 100
    with place.proxy.failing(CutResponse(MIB), matching="GET"), pytest.raises(UnavailableError):
        place.through.download("large", large / "torn")
    assert not (large / "torn").exists()
    assert sorted(path.name for path in large.iterdir()) == ["new", "old"]


def test_an_upload_that_was_cut_is_not_seen(place: Place, large: Path) -> None:
    with (
        place.proxy.failing(CutRequest(MIB), matching="partNumber=3"),
        pytest.raises(UnavailableError),
    ):
        place.through.upload(large / "new", "fresh")
    assert place.direct.num_bytes("fresh") is None
    with pytest.raises(NotFoundError):
        place.direct.get("fresh")
    place.through.upload(large / "new", "fresh")
    assert content(place.direct, "fresh", large) == NEW
    assert place.direct.abort_uploads() == 0


def test_a_writer_whose_answer_was_lost_knows_its_own_object(place: Place) -> None:
    with place.proxy.failing(LoseAnswer(), times=1):
        place.through.put("claim", b"mine", only_new=True)
    assert place.direct.get("claim") == b"mine"
    with place.proxy.failing(LoseAnswer(), times=1), pytest.raises(AlreadyExistsError):
        place.through.put("claim", b"another's", only_new=True)
    assert place.direct.get("claim") == b"mine"


def test_a_slow_store_is_waited_for(place: Place, large: Path) -> None:
    with place.proxy.failing(Stall(0.5)):
        assert place.through.get("small") == b"old"
        assert content(place.through, "large", large) == OLD


def test_a_silent_store_is_given_up(place: Place) -> None:
    """A silent store costs its time once: what timed out is not asked again by us."""
    sent: list[str] = []

    def count(request: Any, **_: object) -> None:
        sent.append(request.url)

    assert isinstance(place.impatient, S3Storage)
    place.impatient._client.meta.events.register("before-send.s3", count)
    with place.proxy.failing(Stall(60)):
        for call in (place.impatient.list, lambda: place.impatient.put("x", b"", only_new=True)):
            sent.clear()
            with pytest.raises(UnavailableError, match="no answer"):
                call()
            assert len(sent) == s3.REQUEST_ATTEMPTS
