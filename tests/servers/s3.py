"""S3 servers for tests: one in this process, and a real one.

Fixtures, which `tests/conftest.py` hands to every folder: `moto_bucket` and `ceph_bucket` are fresh
buckets with the credentials in the environment, `s3_bucket` is each of them in turn, `proxy` makes
a `Proxy` before a bucket's server. A test that asks for `ceph_bucket` is marked `s3server`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from smallbench.storage.config import StorageConfig
from tests.servers.proxy import Proxy

CEPH = Path(__file__).with_name("ceph.sh")
CEPH_COMMANDS = ("ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin", "monmaptool")


def no_server() -> str | None:
    """Why tests of a real server cannot run; None where they can."""
    if os.environ.get("SMALLBENCH_TEST_S3"):
        return None
    missing = [command for command in CEPH_COMMANDS if not shutil.which(command)]
    if missing:
        return f"no {missing[0]} command, and SMALLBENCH_TEST_S3 names no server"
    return None


@dataclass(frozen=True)
class Server:
    endpoint_url: str
    access_key: str
    secret_key: str
    ceph_conf: str | None = None
    """Of a Ceph that the tests started: for `radosgw-admin`."""

    @property
    def environment(self) -> dict[str, str]:
        """For a client that shall see this server's credentials and no others."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )


@dataclass(frozen=True)
class Bucket:
    server: Server
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def config(self) -> StorageConfig:
        return StorageConfig(endpoint_url=self.server.endpoint_url, addressing_style="path")

    def behind(self, proxy: Proxy) -> Bucket:
        """The same bucket, asked through the proxy."""
        return replace(self, server=replace(self.server, endpoint_url=proxy.endpoint_url))


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        _read_descriptions_once(patch)
        yield Server(f"http://{host}:{port}", "moto-access", "moto-secret-0123456789")
    server.stop()


def _read_descriptions_once(patch: pytest.MonkeyPatch) -> None:
    """Let all clients of this process share boto3's descriptions of AWS: 0.1 s for each client."""
    from botocore import loaders, session

    read: dict[Any, Any] = {}

    def create_loader(search_path: str | None = None) -> Any:
        loader = loaders.create_loader(search_path)
        loader._cache = read
        return loader

    patch.setattr(session, "create_loader", create_loader)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Server]:
    """The server at SMALLBENCH_TEST_S3, with the keys of the environment; else our own Ceph."""
    if url := os.environ.get("SMALLBENCH_TEST_S3"):
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        yield Server(url, *keys)
        return
    directory = tempfile.mkdtemp(prefix="ceph-")
    port = two_free_ports()
    server = Server(
        f"http://127.0.0.1:{port}",
        "ceph-access",
        "ceph-secret-0123456789",
        f"{directory}/ceph.conf",
    )
    try:
        subprocess.run(
            [CEPH, "start", directory, str(port), str(os.getpid())],
            env={**os.environ, **server.environment},
            check=True,
            timeout=180,
        )
        yield server
    finally:
        subprocess.run([CEPH, "stop", directory], check=True, timeout=60)


@pytest.fixture
def moto_bucket(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield from _fresh_bucket(moto, monkeypatch)


@pytest.fixture
def ceph_bucket(ceph: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield from _fresh_bucket(ceph, monkeypatch)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.s3server)])
def s3_bucket(request: pytest.FixtureRequest) -> Bucket:
    bucket: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return bucket


@pytest.fixture
def proxy() -> Iterator[Callable[[Bucket], Proxy]]:
    """A running proxy before a bucket's server."""
    with contextlib.ExitStack() as stack:

        def start(bucket: Bucket) -> Proxy:
            address = urlsplit(bucket.server.endpoint_url)
            assert address.hostname
            assert address.port
            return stack.enter_context(Proxy(address.hostname, address.port))

        yield start


def use_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a server's credentials, and nothing else of AWS, into the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def _fresh_bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    use_credentials(server, monkeypatch)
    client = server.client()
    bucket = Bucket(server, f"test-{uuid4().hex[:12]}")
    client.create_bucket(Bucket=bucket.name)
    yield bucket
    for upload in client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", ()):
        client.abort_multipart_upload(
            Bucket=bucket.name, Key=upload["Key"], UploadId=upload["UploadId"]
        )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        if found := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
            client.delete_objects(Bucket=bucket.name, Delete={"Objects": found})
    client.delete_bucket(Bucket=bucket.name)
    client.close()


def two_free_ports() -> int:
    """A port that nobody uses, nor the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
