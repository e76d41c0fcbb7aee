"""The heartbeat goes on beside the steps, so that no probe kills a run that makes progress."""

from __future__ import annotations

import threading
import time

from smallbench.pretraining.callbacks import Heartbeat
from smallbench.pretraining.pretrain import pretrain
from smallbench.pretraining.saving import WaitForUploads
from smallbench.train.trainer import Progress
from tests.pretraining.test_durability import on_s3
from tests.pretraining.test_kills import VALUES
from tests.pretraining.test_pretrain import tiny
from tests.servers.proxy import Slow


class Pulse:
    """The longest time between two changes of a file, while it is watched."""

    def __init__(self, path) -> None:
        self.path, self.longest = path, 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        last, changed = None, time.monotonic()
        while not self._is_over.wait(0.05):
            found = self.path.stat().st_mtime_ns if self.path.exists() else None
            if found != last:
                last, changed = found, time.monotonic()
            if last is not None:
                self.longest = max(self.longest, time.monotonic() - changed)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def test_a_final_upload_that_takes_long_keeps_the_heartbeat(
    corpus, tmp_path, moto_bucket, proxy, monkeypatch
):
    """The upload takes more than twice as long as the longest silence."""
    slow = proxy(moto_bucket)
    slow.fail(Slow(60_000))
    run_dir = tmp_path / "run"
    durability = on_s3(moto_bucket.behind(slow), lease_seconds=60)
    ends: list[float] = []
    wait = WaitForUploads.on_end

    def timed(self, progress, *, is_done) -> None:
        start = time.monotonic()
        wait(self, progress, is_done=is_done)
        ends.append(time.monotonic() - start)

    monkeypatch.setattr(WaitForUploads, "on_end", timed)
    with Pulse(run_dir / "heartbeat.json") as pulse:
        pretrain(tiny(**VALUES), data=corpus, run_dir=run_dir, durability=durability)
    (seconds,) = ends
    assert seconds > 4
    assert pulse.longest < seconds / 2


def test_every_batch_of_an_evaluation_beats(corpus, tmp_path, monkeypatch):
    beats: list[int] = []
    monkeypatch.setattr(Heartbeat, "beat", lambda self: beats.append(self._step))
    pretrain(tiny(**VALUES, train__micro_batch_size=2), data=corpus, run_dir=tmp_path / "run")
    assert beats.count(0) > 2, "before the first step: the start and its evaluation"
    assert beats[-1] == VALUES["train__max_steps"]


def test_a_step_that_hangs_does_not_beat(tmp_path):
    """No thread renews it."""
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", every_seconds=0.0)
    heartbeat.on_start(Progress())
    before = (tmp_path / "heartbeat.json").read_text()
    time.sleep(0.2)
    assert (tmp_path / "heartbeat.json").read_text() == before
