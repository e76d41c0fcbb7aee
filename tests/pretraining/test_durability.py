"""Whole runs against S3 servers, faults on the way to them, second writers and signals.

Runs are processes of their own, forked from this one, where they are killed or ended by a signal.
"""

import functools
import itertools
import json
import os
import shutil
import signal
import time

import pytest

from smallbench import retry
from smallbench.checkpoints import store as checkpoint_module
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import (
    CredentialsError,
    DataError,
    ExitCode,
    InterruptedRunError,
    SmallbenchError,
    UnavailableError,
    UnsavedError,
)
from smallbench.files import read_json
from smallbench.pretraining.pretrain import pretrain
from smallbench.stop import NEVER, SignalStop, Stop
from smallbench.storage import open_storage
from smallbench.storage.local import LocalStorage
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.config import DurabilityConfig
from smallbench.train.engine import TorchEngine
from tests.pretraining.test_kills import VALUES, forked, status_of
from tests.pretraining.test_pretrain import StopAfter, outcome, tiny
from tests.servers.proxy import Answer, CutRequest, CutResponse, Gone, Stall

LAST = VALUES["train__max_steps"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.5)


def on_s3(bucket, **values):
    config = bucket.config
    return DurabilityConfig(
        storage=f"{bucket.url}/runs",
        endpoint_url=config.endpoint_url,
        addressing_style=config.addressing_style,
        **{"lease_seconds": 0.5, **values},
    )


def remote_of(bucket, name="run"):
    return RemoteRun(open_storage(f"{bucket.url}/runs/{name}", bucket.config))


def run(corpus, run_dir, durability, **values):
    pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=durability, **values)


def exit_code_of(action):
    """In a process of its own; its exit code is that of the console script."""

    def ended():
        try:
            action()
        except SmallbenchError as error:
            os._exit(error.exit_code)

    return forked(ended)


# S3


def test_an_empty_machine_continues_from_s3(corpus, tmp_path, uninterrupted, s3_bucket):
    run_dir, durability = tmp_path / "run", on_s3(s3_bucket)
    for steps in (4, 2):
        with pytest.raises(InterruptedRunError):
            run(corpus, run_dir, durability, stop=StopAfter(steps))
        shutil.rmtree(run_dir)
    run(corpus, run_dir, durability, resume="must")
    assert outcome(run_dir) == uninterrupted
    records = read_metrics(run_dir / "metrics.jsonl")
    assert {"sync_lag_steps"} <= records[-2].keys()
    remote = remote_of(s3_bucket)
    assert remote.store.steps() == CheckpointStore(run_dir).steps()
    assert remote.store.clean_up() == 0
    assert json.loads(remote.storage.get("run.json"))["attempts"][-1]["number"] == 3


def test_of_two_writers_one_wins_and_nothing_is_damaged(corpus, tmp_path, uninterrupted, s3_bucket):
    writers = [
        exit_code_of(functools.partial(run, corpus, tmp_path / name / "run", on_s3(s3_bucket)))
        for name in ("a", "b", "c")
    ]
    codes = sorted(status_of(writer) for writer in writers)
    # Who comes when the first has ended finds a finished run, which is no conflict.
    assert codes[0] == ExitCode.DONE
    assert set(codes) <= {ExitCode.DONE, ExitCode.CONFLICT}
    run(corpus, tmp_path / "d" / "run", on_s3(s3_bucket))
    assert outcome(tmp_path / "d" / "run") == uninterrupted
    assert remote_of(s3_bucket).store.clean_up() == 0


@pytest.mark.slow
def test_a_living_writer_keeps_its_run(corpus, tmp_path, s3_bucket):
    """The other waits for its lease, sees it renewed, and exits with 76."""
    durability, over = on_s3(s3_bucket, lease_seconds=5.0), tmp_path / "over"

    def until_the_other_is_gone():
        while not over.exists():
            time.sleep(0.05)

    first = exit_code_of(
        lambda: run(corpus, tmp_path / "a" / "run", durability, stop=Stop(until_the_other_is_gone))
    )
    remote = remote_of(s3_bucket)
    while not remote.lease.read():
        time.sleep(0.05)
    second = exit_code_of(lambda: run(corpus, tmp_path / "b" / "run", durability))
    assert status_of(second) == ExitCode.CONFLICT
    assert not (tmp_path / "b" / "run" / "checkpoints").exists()
    over.touch()
    assert status_of(first) == ExitCode.DONE
    assert remote.store.steps()[-1] == LAST


# Faults on the way


@pytest.mark.parametrize(
    "fault",
    [
        Gone(),
        pytest.param(Answer(503), marks=pytest.mark.slow),
        pytest.param(Answer(403), marks=pytest.mark.slow),
        pytest.param(CutRequest(500), marks=pytest.mark.slow),
        pytest.param(CutResponse(20), marks=pytest.mark.slow),
        pytest.param(Stall(10.0), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training_never_stops_for_a_storage_that_fails(
    corpus, tmp_path, uninterrupted, moto_bucket, proxy, fault
):
    """From the first step until after the last; when the storage is back, the run catches up."""
    between = proxy(moto_bucket)
    done = []

    def watch():
        if not done:
            between.fail(fault)
        done.append(True)
        if len(done) == LAST:  # asked once a step: all of them are through
            assert remote_of(moto_bucket).store.steps() == []
            between.fail_for(2.0, fault)
        return False

    durability = on_s3(moto_bucket.behind(between), lease_seconds=300)
    run(corpus, tmp_path / "run", durability, stop=Stop(watch))
    assert outcome(tmp_path / "run") == uninterrupted
    remote = remote_of(moto_bucket)
    assert remote.store.steps()[-1] == LAST
    assert remote.store.clean_up() == 0, "what was given up in between is deleted"


def test_a_storage_that_stays_away_ends_the_run_with_69_and_loses_nothing(
    corpus, tmp_path, uninterrupted, moto_bucket, proxy
):
    between = proxy(moto_bucket)
    durability = on_s3(moto_bucket.behind(between), final_sync_minutes=1 / 60)

    def fail():
        between.fail(Gone())
        return False

    with pytest.raises(UnavailableError, match="on the local disk"):
        run(corpus, tmp_path / "run", durability, stop=Stop(fail))
    between.heal()
    run(corpus, tmp_path / "run", on_s3(moto_bucket), resume="must")
    assert outcome(tmp_path / "run") == uninterrupted
    assert remote_of(moto_bucket).store.steps()[-1] == LAST


@pytest.mark.parametrize(
    ("fault", "error"), [(Answer(403), CredentialsError), (Gone(), UnavailableError)], ids=str
)
def test_a_storage_that_fails_at_the_start_is_never_an_empty_one(
    corpus, tmp_path, moto_bucket, proxy, fault, error
):
    run(corpus, tmp_path / "run", on_s3(moto_bucket))
    shutil.rmtree(tmp_path / "run")
    between = proxy(moto_bucket)
    with between.failing(fault), pytest.raises(error):
        run(corpus, tmp_path / "run", on_s3(moto_bucket.behind(between)))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_all_damaged_is_65(corpus, tmp_path, moto_bucket):
    run(corpus, tmp_path / "run", on_s3(moto_bucket))
    shutil.rmtree(tmp_path / "run")
    storage = remote_of(moto_bucket).storage
    for stored in storage.list("checkpoints/"):
        if stored.key.endswith("engine.pt"):
            content = bytearray(storage.get(stored.key))
            content[len(content) // 2] ^= 1
            storage.put(stored.key, bytes(content))
    with pytest.raises(DataError, match="every checkpoint") as caught:
        run(corpus, tmp_path / "run", on_s3(moto_bucket))
    assert caught.value.exit_code == ExitCode.DATA


# Signals


MOMENTS = {
    "in a save": (checkpoint_module, "save_tensors"),
    "in an upload": (LocalStorage, "upload"),
    "in a step": (TorchEngine, "step"),
}


def signalled(corpus, folder, moment, *, grace_seconds, upload_seconds=0.0, number=signal.SIGTERM):
    """A run that sends itself a signal at a moment, in a process of its own; its exit code."""
    owner, name = MOMENTS[moment]

    def action():
        original, calls, questions = getattr(owner, name), itertools.count(1), itertools.count(1)

        def wrapped(*arguments, **keywords):
            result = original(*arguments, **keywords)
            if next(calls) == (2 if name == "save_tensors" else 4):  # the second of two saves
                os.kill(os.getpid(), number)
            if name == "upload":
                time.sleep(upload_seconds)
            return result

        setattr(owner, name, wrapped)
        if name != "upload" and upload_seconds:
            upload = LocalStorage.upload
            LocalStorage.upload = lambda *words: (time.sleep(upload_seconds), upload(*words))
        with SignalStop(grace_seconds=grace_seconds) as stop:

            def ask():
                # The signal, wherever it comes, finds steps to be done.
                while next(questions) >= LAST - 1 and not stop.asked():
                    time.sleep(0.01)
                return stop.asked()

            run(
                corpus,
                folder / "run",
                DurabilityConfig(storage=str(folder / "bucket"), lease_seconds=0.2),
                stop=Stop(ask, stop.seconds_left),
            )

    return status_of(exit_code_of(action))


@pytest.mark.parametrize(
    ("moment", "number"),
    [*zip(MOMENTS, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True)],
)
def test_a_signal_commits_within_the_grace_and_exits_with_75(
    corpus, tmp_path, uninterrupted, moment, number
):
    code = signalled(corpus, tmp_path, moment, grace_seconds=30, number=number)
    assert code == ExitCode.INTERRUPTED
    here = CheckpointStore(tmp_path / "run").steps()
    there = RemoteRun(open_storage(str(tmp_path / "bucket" / "run"))).store.steps()
    assert 0 < here[-1] == there[-1] < LAST
    shutil.rmtree(tmp_path / "run")
    run(corpus, tmp_path / "run", DurabilityConfig(storage=str(tmp_path / "bucket")))
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_grace_period_too_short_exits_with_143_and_the_next_start_continues(
    corpus, tmp_path, uninterrupted, moment
):
    code = signalled(corpus, tmp_path, moment, grace_seconds=1.2, upload_seconds=1.0)
    assert code == ExitCode.SIGTERM
    run(corpus, tmp_path / "run", DurabilityConfig(storage=str(tmp_path / "bucket")))
    assert outcome(tmp_path / "run") == uninterrupted


def test_no_time_for_a_save_is_143_and_tries_none(corpus, tmp_path, uninterrupted):
    def run_with(left, stop=NEVER):
        stop = Stop(stop.asked, lambda: left)
        pretrain(tiny(**VALUES), data=corpus, run_dir=tmp_path, stop=stop)

    with pytest.raises(UnsavedError, match="resumes from step 3") as caught:
        run_with(0.0, stop=StopAfter(5))
    assert caught.value.exit_code == ExitCode.SIGTERM
    assert CheckpointStore(tmp_path).steps() == [3]
    run_with(0.0)
    assert outcome(tmp_path) == uninterrupted


def test_a_stop_within_a_step_undoes_it(corpus, tmp_path):
    """Dropout draws anew what it drew; the data stands where it stood."""
    values = {**VALUES, "train__micro_batch_size": 2}
    pretrain(tiny(**values), data=corpus, run_dir=tmp_path / "whole")
    for questions in (7, 6, 9):  # four micro-batches: three questions within a step, one after it
        with pytest.raises(InterruptedRunError):
            pretrain(
                tiny(**values),
                data=corpus,
                run_dir=tmp_path / "run",
                stop=StopAfter(questions),
            )
    pretrain(tiny(**values), data=corpus, run_dir=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_stop_before_the_first_step_does_not_exit_with_75(corpus, tmp_path):
    """A scheduler that starts again at 75 would do so for ever."""
    values = {**VALUES, "train__micro_batch_size": 2}
    with pytest.raises(SmallbenchError, match="before this attempt had done a step") as caught:
        pretrain(tiny(**values), data=corpus, run_dir=tmp_path, stop=Stop(lambda: True))
    assert caught.value.exit_code == ExitCode.CRASH


def test_the_heartbeat_tells_the_step(corpus, tmp_path):
    pretrain(tiny(**VALUES), data=corpus, run_dir=tmp_path)
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert 1 <= beat["step"] <= LAST
    assert abs(beat["unix_seconds"] - time.time()) < 60


def test_the_totals_of_a_run_are_in_the_storage_too(corpus, tmp_path):
    """Also after a second attempt, which began with the first one's summary there."""
    durability = DurabilityConfig(storage=str(tmp_path / "bucket"))
    with pytest.raises(InterruptedRunError):
        run(corpus, tmp_path / "run", durability, stop=StopAfter(5))
    run(corpus, tmp_path / "run", durability)
    here, there = (read_json(tmp_path / p / "run.json") for p in ("run", "bucket/run"))
    assert len(there["attempts"]) == 2
    assert there["summary"]["steps"] == here["summary"]["steps"] == LAST


def test_milestones_stay(corpus, tmp_path):
    values = {**VALUES, "train__milestones": [2], "train__keep_every_steps": 3}
    pretrain(
        tiny(**values),
        data=corpus,
        run_dir=tmp_path / "run",
        durability=DurabilityConfig(storage=str(tmp_path / "bucket")),
    )
    assert CheckpointStore(tmp_path / "run").steps() == [2, 3, 6, 8]
