"""What holds for S3 alone: credentials, buckets, uploads in parts and conditional writes."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from smallbench.errors import ConfigError, CredentialsError, ExitCode, UnavailableError
from smallbench.files import sha256_file
from smallbench.storage import open_storage
from smallbench.storage.base import AlreadyExistsError, Storage
from smallbench.storage.config import StorageConfig
from tests.servers.proxy import Answer
from tests.servers.s3 import Bucket, use_credentials
from tests.storage.test_contract import keys, twelve_mib

pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.mark.s3server
def test_unfinished_uploads_are_aborted(ceph_bucket: Bucket) -> None:
    client = ceph_bucket.server.client()
    for key in ("run/checkpoints/a", "run/checkpoints/b", "run/c", "other/d"):
        begun = client.create_multipart_upload(Bucket=ceph_bucket.name, Key=key)
        client.upload_part(
            Bucket=ceph_bucket.name, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"half"
        )
    storage = open_storage(f"{ceph_bucket.url}/run", ceph_bucket.config)
    assert keys(storage) == []
    assert storage.abort_uploads("checkpoints/") == 2
    assert storage.abort_uploads() == 1
    rest = client.list_multipart_uploads(Bucket=ceph_bucket.name)["Uploads"]
    assert [upload["Key"] for upload in rest] == ["other/d"]


def test_a_folder_marker_of_a_console_is_not_an_object(s3_bucket: Bucket) -> None:
    s3_bucket.server.client().put_object(Bucket=s3_bucket.name, Key="run/", Body=b"")
    storage = open_storage(f"{s3_bucket.url}/run", s3_bucket.config)
    storage.put("x", b"")
    assert keys(storage) == ["x"]


def test_a_bucket_that_does_not_exist_is_never_an_empty_one(
    s3_bucket: Bucket, tmp_path: Path
) -> None:
    storage = open_storage("s3://no-such-bucket-here/run", s3_bucket.config)
    (tmp_path / "x").write_bytes(b"x")
    for ask in asks(storage, tmp_path):
        with pytest.raises(UnavailableError, match="no-such-bucket-here"):
            ask()


@pytest.mark.s3server
def test_wrong_keys_are_refused_and_never_shown(
    ceph_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(ceph_bucket.url, ceph_bucket.config)
    storage.put("key", b"there")
    (tmp_path / "x").write_bytes(b"x")
    server = ceph_bucket.server
    for wrong in (
        replace(server, secret_key="wrong-secret-9876543210"),
        replace(server, access_key="wrong-access"),
    ):
        use_credentials(wrong, monkeypatch)
        refused = open_storage(ceph_bucket.url, ceph_bucket.config)
        for ask in asks(refused, tmp_path):
            with pytest.raises(CredentialsError, match="access was refused") as caught:
                ask()
            assert caught.value.exit_code == ExitCode.CREDENTIALS == 77
            assert wrong.secret_key not in shown(caught)
    assert keys(storage) == ["key"]


@pytest.mark.s3server
def test_an_active_run_finds_renewed_keys(
    ceph_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ceph_bucket.server
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    keys_of = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    path.write_text(keys_of.format(server.access_key, "expired"))
    storage = open_storage(ceph_bucket.url, ceph_bucket.config)
    with pytest.raises(CredentialsError):
        storage.put("key", b"x")
    path.write_text(keys_of.format(server.access_key, server.secret_key))
    storage.put("key", b"x")
    assert storage.get("key") == b"x"


def test_without_credentials_it_says_which_to_set(
    moto_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage = open_storage(moto_bucket.url, moto_bucket.config)
    (tmp_path / "x").write_bytes(b"x")
    for ask in asks(storage, tmp_path):
        with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
            ask()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_credential_with_a_line_end_is_not_quoted(
    name: str, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "abcdefgh-secret\n")
    storage = open_storage(moto_bucket.url, moto_bucket.config)
    with pytest.raises(CredentialsError, match="line end") as caught:
        storage.put("x", b"")
    assert "abcdefgh-secret" not in shown(caught)


def test_credentials_in_an_address_are_not_accepted(moto_bucket: Bucket) -> None:
    url = moto_bucket.server.endpoint_url.replace("//", "//me:abcdefgh@")
    with pytest.raises(ConfigError, match="holds credentials") as caught:
        open_storage(moto_bucket.url, StorageConfig(endpoint_url=url))
    assert "abcdefgh" not in shown(caught)


def test_where_nobody_listens_it_is_unavailable(moto_bucket: Bucket, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        storage = open_storage(moto_bucket.url, replace(moto_bucket.config, endpoint_url=url))
        (tmp_path / "x").write_bytes(b"x")
        for ask in asks(storage, tmp_path):
            with pytest.raises(UnavailableError, match="cannot be reached") as caught:
                ask()
            assert str(caught.value).endswith("; check --endpoint_url and the network")
            assert "?" not in str(caught.value)
            assert moto_bucket.server.secret_key not in shown(caught)


def test_a_store_without_conditional_writes_is_looked_at_first(
    moto_bucket: Bucket, proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    through = proxy(moto_bucket)
    storage = open_storage(moto_bucket.url, moto_bucket.behind(through).config)
    through.fail(Answer(501), times=1, matching="PUT")
    storage.put("lock", b"first", only_new=True)
    assert "knows no conditional writes" in capsys.readouterr().err
    with pytest.raises(AlreadyExistsError):
        storage.put("lock", b"second", only_new=True)
    assert storage.get("lock") == b"first"


def test_a_store_that_ignores_the_condition_is_found_out(
    moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ignore(params: dict[str, dict[str, str]], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)

    storage = open_storage(moto_bucket.url, moto_bucket.config)
    storage._client.meta.events.register("before-call.s3.PutObject", ignore)
    storage.check()
    storage.put("lock", b"first", only_new=True)
    with pytest.raises(AlreadyExistsError):
        storage.put("lock", b"second", only_new=True)
    assert storage.get("lock") == b"first"
    assert "knows no conditional writes" in capsys.readouterr().err


def test_each_checksum_mode_works(s3_bucket: Bucket, tmp_path: Path) -> None:
    path = twelve_mib(tmp_path / "large")
    config = replace(s3_bucket.config, checksum_mode="when_required")
    storage = open_storage(s3_bucket.url, config)
    storage.check()
    storage.upload(path, "large")
    storage.download("large", tmp_path / "back")
    assert sha256_file(tmp_path / "back") == sha256_file(path)
    storage.delete(["large"])
    assert keys(storage) == []


def asks(storage: Storage, folder: Path):
    """Every call of the protocol; `folder` holds a file x."""
    return [
        storage.list,
        storage.check,
        storage.abort_uploads,
        lambda: storage.get("key"),
        lambda: storage.num_bytes("key"),
        lambda: storage.put("key", b"x"),
        lambda: storage.put("key", b"x", only_new=True),
        lambda: storage.upload(folder / "x", "key"),
        lambda: storage.download("key", folder / "y"),
        lambda: storage.delete(["key"]),
    ]


def shown(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """All that a traceback of the error would print of messages."""
    error: BaseException | None = caught.value
    text = ""
    while error is not None:
        text += f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text
