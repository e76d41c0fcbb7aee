"""The built image, and how it is run: without root, and with nothing to write to but /scratch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker import image as built

UID = 10001
RESTRICTED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host",
    # The order of a sum, and so its last bits, depends on the number of threads.
    "--env=OMP_NUM_THREADS=1", "--env=HF_HUB_OFFLINE=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def image() -> str:
    """The CPU image, from the working tree."""
    built.build()
    return built.IMAGE


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder to mount at /scratch."""
    return owned(tmp_path / "scratch")


def owned(folder: Path) -> Path:
    """A new folder that belongs to the image's user."""
    folder.mkdir()
    os.chown(folder, UID, UID)
    return folder


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(image: str, scratch: Path) -> Run:
    """`docker run smallbench WORDS`, with the fixture's /scratch unless another is given."""

    def run(
        *words: object, options: tuple[str, ...] = (), code: int = 0, folder: Path = scratch
    ) -> subprocess.CompletedProcess[str]:
        done = built.docker(
            "run", "--rm", *RESTRICTED, f"--volume={folder}:/scratch", *options, image, *words,
            check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    return run
