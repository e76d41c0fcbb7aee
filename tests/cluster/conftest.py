"""The committed manifests, built once, and the parts of their jobs."""

from __future__ import annotations

import pytest

from tests.cluster.kustomize import ROOT, STAGES, jobs, kustomize

OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
ROOTS = ("base", "namespace", "examples", *(f"overlays/{name}" for name in OVERLAYS))
ALL_COMPONENTS = sorted(path.name for path in (ROOT / "k8s" / "components").iterdir())


@pytest.fixture(scope="module")
def built():
    return {folder: kustomize(f"k8s/{folder}") for folder in ROOTS}


@pytest.fixture(params=["base", *(f"overlays/{name}" for name in OVERLAYS)], scope="module")
def folder(request):
    return request.param


@pytest.fixture(params=STAGES)
def stage(request):
    return request.param


@pytest.fixture
def job(built, folder, stage):
    return jobs(built[folder])[stage]


@pytest.fixture
def spec(job):
    return job["spec"]


@pytest.fixture
def pod(spec):
    return spec["template"]["spec"]


@pytest.fixture
def container(pod):
    (only,) = pod["containers"]
    return only
