"""A disk that fails at any call the project makes: nothing is lost, and it is one sentence.

The laws, for every call, error and place: the run ends right, or with 69 and one sentence; what
was committed is neither renamed nor deleted; and when the disk is well again, the same command
ends as if nothing had been.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import ExitCode
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import outcome

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "servers" / "disk_faults.c"

RUN = {**VALUES, "train__keep_last": 3}
LAST, BEFORE = 8, 6
"""The run's last step, and that of the checkpoint before."""

UNREADABLE = ("ESTALE", "EIO", "EMFILE", "EACCES")
UNWRITABLE = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "ESTALE")
NOT_OFFERED = ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL")

CALLS = {
    **dict.fromkeys(("open", "read", "stat", "list"), UNREADABLE),
    **dict.fromkeys(("create", "write", "fsync", "rename", "mkdir", "unlink"), UNWRITABLE),
    "link": (*UNWRITABLE, "EOPNOTSUPP", "ENOSYS", "EPERM"),
    "flock": NOT_OFFERED,
    "fsync_folder": ("EINVAL", "EOPNOTSUPP", "ENOSYS", "EIO"),
}
PLACES = (
    "run/commits",
    "run/checkpoints",
    "run/run.json",
    "run/metrics.jsonl",
    "run/lock",
    "run/holder.json",
    "bucket/run/commits",
    "bucket/run/checkpoints",
    "bucket/run/attempts",
    "bucket/run/lease.json",
    "bucket/run/run.json",
)

FIRST = [
    ("open", "ESTALE", "run/commits"),
    ("read", "EIO", "run/checkpoints"),
    ("list", "EACCES", "run/commits"),
    ("list", "EMFILE", "bucket/run/commits"),
    ("stat", "ESTALE", "run/run.json"),
    ("write", "ENOSPC", "run/checkpoints"),
    ("write", "EDQUOT", "run/metrics.jsonl"),
    ("create", "EROFS", "bucket/run/checkpoints"),
    ("flock", "ENOLCK", "run/lock"),
    ("fsync_folder", "EINVAL", "run/"),
    ("link", "ENOSYS", "bucket/run"),
]
ALL = [
    (call, name, place)
    for call, names in CALLS.items()
    for name, place in itertools.product(names, PLACES)
    if (call, name, place) not in FIRST
]


class FaultyDisk:
    """The process that runs `pretrain` on request."""

    def __init__(self, corpus: Path, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pretraining.faulty_disk", str(corpus)],
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(shim)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, values: dict[str, object], **environment: str) -> tuple[int, str]:
        case = {
            "run_dir": str(folder / "run"),
            "storage": str(folder / "bucket"),
            "values": values,
            "environment": environment,
        }
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(case), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["said"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def disk(corpus, tmp_path_factory):
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler for the library that makes system calls fail")
    shim = tmp_path_factory.mktemp("shim") / "disk_faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", shim, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    faulty = FaultyDisk(corpus, shim)
    yield faulty
    faulty.close()


@pytest.fixture(scope="module")
def begun(disk, tmp_path_factory):
    """A run that lost its last checkpoint, as by a kill; and what it becomes when it goes on."""
    folder = tmp_path_factory.mktemp("begun")
    code, said = disk.run(folder, RUN)
    assert code == ExitCode.DONE, said
    whole = outcome(folder / "run")
    for place in (folder / "run", folder / "bucket" / "run"):
        (place / "commits" / f"step-{LAST:010d}.json").unlink()
        shutil.rmtree(place / "checkpoints" / f"step-{LAST:010d}")
    return folder, whole


def check(disk, begun, folder, call, name, place):
    template, whole = begun
    shutil.copytree(template, folder, dirs_exist_ok=True)
    code, said = disk.run(
        folder,
        RUN,
        FAULT_CALL=call,
        FAULT_PATH=str(folder / place),
        FAULT_ERRNO=str(getattr(errno, name)),
    )
    assert code in {ExitCode.DONE, ExitCode.UNAVAILABLE}, said
    assert "Traceback" not in said
    if code == ExitCode.UNAVAILABLE:
        assert said.splitlines()[-1].startswith("smallbench pretrain: ")
    for store in map(CheckpointStore, (folder / "run", folder / "bucket" / "run")):
        assert store.quarantined() == []
        assert store.steps()[-1] >= BEFORE
    code, said = disk.run(folder, RUN)
    assert code == ExitCode.DONE, said
    assert outcome(folder / "run") == whole


@pytest.mark.parametrize(
    ("call", "name", "place"),
    [
        fault if number % 3 == 0 else pytest.param(*fault, marks=pytest.mark.slow)
        for number, fault in enumerate(FIRST)
    ],
)
def test_a_failing_disk_costs_nothing_but_the_attempt(disk, begun, tmp_path, call, name, place):
    check(disk, begun, tmp_path, call, name, place)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("call", "name", "place"), ALL)
def test_every_failure_at_every_call(disk, begun, tmp_path, call, name, place):
    check(disk, begun, tmp_path, call, name, place)


@pytest.mark.parametrize(
    "name", ["ESTALE", *(pytest.param(n, marks=pytest.mark.slow) for n in ("EIO", "EMFILE"))]
)
def test_a_read_that_fails_once_is_repeated(disk, begun, tmp_path, name):
    template, whole = begun
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    code, said = disk.run(
        tmp_path,
        RUN,
        FAULT_CALL="open",
        FAULT_PATH=f"{tmp_path}/run/commits/step-",
        FAULT_ERRNO=str(getattr(errno, name)),
        FAULT_TIMES="1",
    )
    assert code == ExitCode.DONE, said
    assert outcome(tmp_path / "run") == whole
