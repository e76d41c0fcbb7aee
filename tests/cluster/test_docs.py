"""What docs/docker.md and docs/kubernetes.md tell people to type exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from jobs.cli import JOBS, load, resolve
from tests.cluster.kustomize import KUBECTL, ROOT

PAGES = ("docker", "kubernetes")


def text_of(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def commands(page: str) -> Iterator[str]:
    """Lines behind `$`, with those that continue them and without comments."""
    for block in re.findall(r"```console\n(.*?)```", text_of(page), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield re.sub(r"\s+# .*", "", line[2:])


def of_ours(page: str) -> list[list[str]]:
    """The words behind `smallbench`, on a machine or in a container."""
    found = []
    for line in commands(page):
        words = shlex.split(line)
        for at, word in enumerate(words[:-1]):
            if word in {"smallbench", "sb"} and words[at + 1] in JOBS:
                found.append(words[at + 1 :])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_ours_is_accepted(page):
    lines = of_ours(page)
    assert len(lines) >= 8
    for job, *words in lines:
        resolve(load(job), words, {})


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    names = set(re.findall(r"\b(?:k8s|docker|smallbench|tests)/[\w./-]*\w", text_of(page)))
    assert names
    missing = {name for name in names if not (ROOT / name).exists()}
    assert missing <= {"smallbench/sbom.cdx.json"}, "the one that is in the image only"


def test_every_folder_that_is_applied_builds():
    folders = {
        match[1]
        for page in PAGES
        for line in commands(page)
        if (match := re.search(r"kubectl apply -k (\S+)", line))
    }
    assert len(folders) >= 3
    for folder in folders:
        done = subprocess.run([KUBECTL, "kustomize", folder], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_every_component_and_build_argument_is_explained():
    from smallbench.cluster.config import COMPONENTS

    for component in COMPONENTS:
        assert component in text_of("kubernetes"), component
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name in re.findall(r"^ARG (\w+)=", dockerfile, re.MULTILINE):
        assert f"`{name}`" in text_of("docker"), name
