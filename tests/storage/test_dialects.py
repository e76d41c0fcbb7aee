"""What other stores answer, and what is no store: believed only if it is an answer of S3's.

The laws: nothing that is not an object is returned or written down as one, an error is never "not
there", each situation has its own sentence with the store's own words and the right exit code, and
the remedy in the sentence helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from smallbench import retry
from smallbench.errors import (
    ConfigError,
    CredentialsError,
    SmallbenchError,
    UnavailableError,
)
from smallbench.storage import open_storage
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage
from smallbench.storage.config import StorageConfig
from smallbench.storage.s3_errors import no_answer_error
from tests.servers.dialects import DIALECTS
from tests.servers.proxy import Dialect, Proxy
from tests.servers.s3 import Bucket

HINT = r"--checksum_mode=when_required"

CHECKED = {
    "r2": (ConfigError, rf"not implemented.*{HINT}"),
    "gcs": (ConfigError, rf"Invalid argument.*{HINT}"),
    "b2": (ConfigError, rf"Unsupported header.*{HINT}"),
    "console": (ConfigError, r"not an S3 store.*Please log in"),
    "static page": (ConfigError, "not an S3 store"),
    "broken page": (ConfigError, r"not an S3 store.*Hello"),
    "json service": (ConfigError, "not an S3 store"),
    "nginx redirect": (ConfigError, r"301.*redirects to https://store.example/"),
    "temporary redirect": (ConfigError, r"302.*redirects to https://login.example/"),
    "moved": (ConfigError, r"redirects to lab.s3.example"),
    "region": (ConfigError, r"AWS_DEFAULT_REGION=eu-central-1"),
    "go tls port": (ConfigError, r"speaks TLS.*--endpoint_url=https://127"),
    "nginx tls port": (ConfigError, r"speaks TLS.*--endpoint_url=https://127"),
    "raw tls port": (ConfigError, r"speaks TLS.*--endpoint_url=https://127"),
    "skew": (UnavailableError, r"too large.*set this machine's clock"),
    "expired": (CredentialsError, "token has expired"),
    "encryption wanted": (CredentialsError, "resource-based policy"),
    "forbidden page": (CredentialsError, "Blocked by the firewall"),
    "slow down": (UnavailableError, "reduce your request rate"),
    "bad gateway": (UnavailableError, "502.*Bad gateway"),
    "object lock": (CredentialsError, "protected by object lock"),
    "old listing": (ConfigError, "lists only the first part"),
    "liar": (UnavailableError, "does not return what was written"),
}
"""What the look at the start says."""

PASSED = {
    "old minio": "knows no conditional writes",
    "no multi-delete": "one by one",
    "no upload list": "",
    "full": "",
    "quota": "",
}
"""Stores that a run can use, and what is said about them at the start."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DELAYS_SECONDS", (0.001,))


Opened = Callable[..., tuple[Storage, Proxy]]


@pytest.fixture
def opened(moto_bucket: Bucket, proxy: Callable[[Bucket], Proxy]) -> Opened:
    """A storage behind a proxy that speaks a dialect."""

    def start(dialect: str, **config: Any) -> tuple[Storage, Proxy]:
        through = proxy(moto_bucket)
        if dialect:
            through.fail(Dialect(DIALECTS[dialect]))
        behind = replace(moto_bucket.behind(through).config, **config)
        return open_storage(f"{moto_bucket.url}/run", behind), through

    return start


def test_every_dialect_has_its_law() -> None:
    assert CHECKED.keys() | PASSED.keys() == DIALECTS.keys()
    assert not CHECKED.keys() & PASSED.keys()


@pytest.mark.parametrize("dialect", CHECKED)
def test_the_check_at_the_start_reports_what_answered(dialect: str, opened: Opened) -> None:
    storage, _ = opened(dialect)
    kind, words = CHECKED[dialect]
    with pytest.raises(kind, match=words) as caught:
        storage.check()
    assert "\n" not in str(caught.value)
    assert (HINT in str(caught.value)) == (HINT in words), "the hint, and only where it helps"


@pytest.mark.parametrize("dialect", PASSED)
def test_missing_features_of_a_store_are_reported_and_replaced(
    dialect: str, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, _ = opened(dialect, checksum_mode="when_required")
    storage.check()
    storage.check()
    assert storage.abort_uploads() == 0
    assert storage.list() == []
    said = capsys.readouterr().err
    assert PASSED[dialect] in said
    assert len(said.splitlines()) <= 1, "once"


@pytest.mark.parametrize("dialect", ["r2", "gcs", "b2", "old minio"])
def test_the_hint_helps(dialect: str, opened: Opened, tmp_path: Path) -> None:
    storage, _ = opened(dialect, checksum_mode="when_required")
    storage.check()
    (tmp_path / "x").write_bytes(b"x" * 20_000)
    storage.upload(tmp_path / "x", "x")
    storage.put("claim", b"mine", only_new=True)
    with pytest.raises(AlreadyExistsError):
        storage.put("claim", b"another's", only_new=True)
    storage.delete(["x", "claim"])
    assert storage.list() == []


FIRST = {"r2", "console", "static page", "nginx redirect", "raw tls port", "liar"}


@pytest.mark.parametrize(
    "dialect",
    [d if d in FIRST else pytest.param(d, marks=pytest.mark.slow) for d in DIALECTS],
)
def test_no_answer_is_believed_that_is_not_the_stores(
    dialect: str, opened: Opened, moto_bucket: Bucket, tmp_path: Path
) -> None:
    """Each call ends right or raises one sentence, which never says that the object is missing."""
    storage, _ = opened(dialect)
    direct = open_storage(f"{moto_bucket.url}/run", moto_bucket.config)
    direct.put("there", b"right")
    (tmp_path / "x").write_bytes(b"new" * 10_000)
    calls: dict[str, tuple[Callable[[], Any], Any]] = {
        "list": (lambda: [stored.key for stored in storage.list()], ["there"]),
        "get": (lambda: storage.get("there"), b"right"),
        "num_bytes": (lambda: storage.num_bytes("there"), 5),
        "download": (lambda: _downloaded(storage, tmp_path / "y"), b"right"),
        "put": (lambda: storage.put("small", b"s"), None),
        "put_new": (lambda: storage.put("lock", b"l", only_new=True), None),
        "upload": (lambda: storage.upload(tmp_path / "x", "large"), None),
        "delete": (lambda: storage.delete(["small", "lock", "large"]), None),
        "abort_uploads": (storage.abort_uploads, 0),
    }
    for name, (call, right) in calls.items():
        try:
            result = call()
        except NotFoundError:
            pytest.fail(f"{name} took an error for a missing object")
        except SmallbenchError:
            continue
        assert result == right, name
        if name in {"put", "put_new", "upload"}:
            key = {"put": "small", "put_new": "lock", "upload": "large"}[name]
            assert direct.num_bytes(key) is not None, f"{name} was acknowledged"
    assert direct.get("there") == b"right"


def _downloaded(storage: Storage, path: Path) -> bytes:
    storage.download("there", path)
    return path.read_bytes()


@pytest.mark.parametrize(("dialect", "words"), [("full", "is full"), ("quota", "quota exceeded")])
def test_a_full_store_is_not_reported_as_refused_credentials(
    dialect: str, words: str, opened: Opened, tmp_path: Path
) -> None:
    storage, _ = opened(dialect)
    (tmp_path / "x").write_bytes(b"new" * 10_000)
    with pytest.raises(UnavailableError, match=words):
        storage.upload(tmp_path / "x", "large")


def test_a_wrong_clock_is_reported_with_its_difference(opened: Opened) -> None:
    storage, through = opened("")
    reply = DIALECTS["skew"]("GET", "/", {})
    assert reply is not None
    late = replace(reply, headers={"Date": "Tue, 01 Jan 2030 00:00:00 GMT"})
    through.fail(Dialect(lambda *_: late))
    with pytest.raises(UnavailableError, match=r"clock is [\d,]+ s behind the store's"):
        storage.list()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/lab",
        "http://127.0.0.1:9/lab/",
        "https://lab.s3.example",
        "https://LAB.x",
    ],
)
def test_an_endpoint_that_holds_the_buckets_name_is_refused(url: str, moto_bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match="already holds the bucket's name"):
        open_storage("s3://lab/runs", StorageConfig(endpoint_url=url))


@pytest.mark.parametrize(
    "url",
    ["", "localhost:9000", "s3://lab", "http://", "https://:9000", "http://h:port", "http://h?x"],
)
def test_an_endpoint_is_an_address(url: str, moto_bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match=r"address|Invalid endpoint"):
        open_storage("s3://lab/runs", StorageConfig(endpoint_url=url))


def test_the_other_scheme_is_named_if_the_port_speaks_plain_http(moto_bucket: Bucket) -> None:
    url = moto_bucket.server.endpoint_url.replace("http:", "https:")
    storage = open_storage(moto_bucket.url, replace(moto_bucket.config, endpoint_url=url))
    with pytest.raises(ConfigError, match=r"speaks plain HTTP: set --endpoint_url=http://127"):
        storage.check()


def test_a_tls_port_that_is_closed_is_tried_again() -> None:
    endpoint = "https://127.0.0.1:9"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="key", aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip
    with pytest.raises(BotoCoreError) as caught:
        client.list_buckets()
    assert "HTTPS" in str(caught.value.kwargs["error"])  # the class of the connection
    error = no_answer_error(caught.value, "s3://lab", endpoint=endpoint)
    assert isinstance(error, UnavailableError)
    assert "plain HTTP" not in str(error)
