"""SIGKILL at every write, rename, flush and upload, and at random moments: nothing is lost.

Each run is a process of its own, forked from this one; the kernel's SIGKILL ends it.
"""

import itertools
import os
import random
import shutil
import signal
import threading
import time
import traceback

import pytest
import torch
from botocore.httpsession import URLLib3Session

from smallbench.checkpoints import store as checkpoint_module
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.store import CheckpointStore
from smallbench.files import read_json
from smallbench.pretraining.pretrain import pretrain
from smallbench.storage import open_storage
from smallbench.storage.local import LocalStorage
from smallbench.storage.s3 import PART_BYTES
from smallbench.train.config import DurabilityConfig
from tests.pretraining.test_pretrain import outcome, tiny

VALUES = {
    "train__max_steps": 8,
    "train__save_every_steps": 3,
    "train__log_every_steps": 2,
    "train__eval_every_steps": 4,
    "model__num_hidden_layers": 1,
}

LARGER = VALUES | {"model__intermediate_size": 17_000, "train__save_every_steps": 4}

OPERATIONS = [
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "link"),
    (os, "unlink"),
    (shutil, "rmtree"),
    (shutil, "copyfile"),
    (torch, "save"),
    (checkpoint_module, "save_tensors"),
    (LocalStorage, "put"),
    (LocalStorage, "upload"),
    (LocalStorage, "delete"),
]
"""What the protocol consists of, on the disk and in the storage."""


def run(corpus, folder, name="run"):
    durability = DurabilityConfig(storage=str(folder / "bucket"), lease_seconds=0.2)
    pretrain(tiny(**VALUES), data=corpus, run_dir=folder / name, durability=durability)


def forked(action):
    """A process that does `action`; its id."""
    if child := os.fork():
        return child
    try:  # nothing of pytest's may run in the child
        os.close(1), os.close(2)
        os.open(os.devnull, os.O_WRONLY), os.dup(1)
        torch.set_num_threads(1)
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def status_of(child):
    """How it ended: the exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_at(number, *, after, action, operations=OPERATIONS):
    """`action`, killed just before or after the `number`-th operation.

    Renewals of the lease are not counted: how many there are is a matter of the machine.
    """
    count, lock = itertools.count(1), threading.Lock()

    def wrap(owner, name):
        original = getattr(owner, name)

        def wrapped(*arguments, **keywords):
            with lock:
                is_it = threading.current_thread().name != "lease" and next(count) == number
            if is_it and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **keywords)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapped)

    def patched():
        for owner, name in operations:
            wrap(owner, name)
        action()

    return patched


def assert_nothing_is_left(folder):
    """Every file belongs to a commit, here and in the storage."""
    for place in (folder / "run", folder / "bucket" / "run"):
        assert not list(place.rglob("*.tmp-*"))
        data = {p.relative_to(place).as_posix() for p in place.glob("checkpoints/*/*")}
        commits = [read_json(p) for p in place.glob("commits/*")]
        assert data == {commit["directory"] for commit in commits}
        assert all(
            (place / commit["directory"] / name).stat().st_size == file["bytes"]
            for commit in commits
            for name, file in commit["files"].items()
        )
    assert CheckpointStore(folder / "run").newest().step == VALUES["train__max_steps"]


def kill_and_check(corpus, folder, uninterrupted, start, *, empty_disk):
    """Until it is through: killed by `start`, resumed, and the same as if nothing had been."""
    assert status_of(start()) in {-signal.SIGKILL, 0}
    if empty_disk:
        shutil.rmtree(folder / "run", ignore_errors=True)
    run(corpus, folder)
    assert outcome(folder / "run") == uninterrupted
    assert_nothing_is_left(folder)


NUM_OPERATIONS = 270
"""More than a run has (some 254), so that the last of them are seen to end undisturbed."""


def test_a_run_has_fewer_operations_than_are_tried(corpus, tmp_path):
    action = killing_at(NUM_OPERATIONS, after=False, action=lambda: run(corpus, tmp_path))
    assert status_of(forked(action)) == 0
    action = killing_at(60, after=False, action=lambda: run(corpus, tmp_path, "again"))
    assert status_of(forked(action)) == -signal.SIGKILL


EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


def marks_of(number):
    """Every 27th operation by default, every ninth in CI; both cover all four ways to be killed."""
    if number % 27 == 1:
        return ()
    return (pytest.mark.slow,) if number % 9 == 1 else EXHAUSTIVE


NUMBERS = [pytest.param(n, marks=marks_of(n)) for n in range(1, NUM_OPERATIONS)]


@pytest.mark.parametrize("number", NUMBERS)
def test_killed_at_an_operation(corpus, tmp_path, uninterrupted, number):
    """In turn before and after it, with the disk and without it."""
    action = killing_at(number, after=number % 4 < 2, action=lambda: run(corpus, tmp_path))
    kill_and_check(
        corpus, tmp_path, uninterrupted, lambda: forked(action), empty_disk=bool(number % 2)
    )


NUM_REQUESTS = 80
"""More than a run sends to S3 (some 70)."""


@pytest.fixture(scope="module")
def larger(corpus, tmp_path_factory):
    """An uninterrupted run whose checkpoints travel in several parts."""
    run_dir = tmp_path_factory.mktemp("larger")
    pretrain(tiny(**LARGER), data=corpus, run_dir=run_dir)
    assert (CheckpointStore(run_dir).newest().directory / "engine.pt").stat().st_size > PART_BYTES
    return outcome(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=() if n % 12 == 1 else pytest.mark.exhaustive)
        for n in range(1, NUM_REQUESTS, 4)
    ],
)
def test_killed_at_a_request_to_s3(corpus, tmp_path, larger, s3_bucket, number):
    """In turn before it is sent and after it was answered, with the disk and without it."""
    durability = DurabilityConfig(
        storage=s3_bucket.url,
        endpoint_url=s3_bucket.config.endpoint_url,
        addressing_style=s3_bucket.config.addressing_style,
        lease_seconds=0.2,
    )

    def attempt():
        pretrain(tiny(**LARGER), data=corpus, run_dir=tmp_path / "run", durability=durability)

    action = killing_at(
        number, after=number % 16 < 8, action=attempt, operations=[(URLLib3Session, "send")]
    )
    assert status_of(forked(action)) in {-signal.SIGKILL, 0}
    if number % 8 < 4:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    attempt()
    assert outcome(tmp_path / "run") == larger
    remote = RemoteRun(open_storage(f"{s3_bucket.url}/run", s3_bucket.config))
    remote.lease.attempt = remote.lease.read()["attempt"]
    assert remote.store.steps()[-1] == VALUES["train__max_steps"]
    assert remote.store.clean_up() == 0, "neither objects nor parts are left"


@pytest.mark.parametrize(
    "seed",
    [
        0,
        1,
        *(pytest.param(n, marks=pytest.mark.slow if n < 8 else EXHAUSTIVE) for n in range(2, 20)),
    ],
)
def test_killed_at_a_random_moment(corpus, tmp_path, uninterrupted, seed):
    draw = random.Random(seed)

    def start():
        child = forked(lambda: run(corpus, tmp_path))
        time.sleep(draw.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        return child

    for _ in range(draw.randint(1, 2)):  # a second kill meets the traces of the first
        status_of(start())
    kill_and_check(corpus, tmp_path, uninterrupted, start, empty_disk=bool(seed % 2))
