"""A node that has the image, and a bucket in a real S3 server with its keys in a Secret."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.pods.cluster import Cluster
from tests.servers.s3 import Bucket, Server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the image of `SMALLBENCH_TEST_IMAGE`, or the one that the Docker engine builds."""
    if reason := no_podman():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    name = os.environ.get("SMALLBENCH_TEST_IMAGE")
    if name is None:
        from tests.docker import image as built

        built.build()
        archive = folder / "image.tar"
        built.docker("save", built.IMAGE, f"--output={archive}")
        name = f"localhost/{built.IMAGE}"
        cluster = Cluster(name, folder)
        cluster.podman("load", f"--input={archive}")
        archive.unlink()
    cluster = Cluster(name, folder)
    yield cluster
    cluster.clean()


@pytest.fixture(scope="module")
def lab(ceph: Server, cluster: Cluster) -> Iterator[Bucket]:
    """A bucket for all stages of a run, one after the other."""
    client = ceph.client()
    bucket = Bucket(ceph, f"lab-{uuid4().hex[:12]}")
    client.create_bucket(Bucket=bucket.name)
    cluster.keep_secret(secret_of(ceph.access_key, ceph.secret_key))
    yield bucket
    cluster.podman("secret", "rm", "smallbench-s3", check=False)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        if found := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
            client.delete_objects(Bucket=bucket.name, Delete={"Objects": found})
    client.delete_bucket(Bucket=bucket.name)
    client.close()


def secret_of(access_key: str, secret_key: str, name: str = "smallbench-s3") -> dict:
    """What `kubectl create secret` makes."""

    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "data": {"access-key-id": encoded(access_key), "secret-access-key": encoded(secret_key)},
    }


def no_podman() -> str | None:
    """Why no pod can be run; None where one can, and in CI, where that is a failure."""
    if "CI" in os.environ:
        return None
    try:
        done = subprocess.run(["podman", "info"], capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return "no podman command"
    return None if done.returncode == 0 else "podman does not run here"
