"""What surrounds the loop, each callback by itself."""

import json
import math

import pytest
import torch

from smallbench.checkpoints.store import CheckpointStore
from smallbench.errors import ConflictError, SmallbenchError, UnavailableError, UnsavedError
from smallbench.pretraining.callbacks import Heartbeat, HeldOutLoss, LogTraining, undecayed
from smallbench.pretraining.saving import SaveCheckpoints, WaitForUploads
from smallbench.stop import NEVER, Stop
from smallbench.train.budget import Budget, Progress
from smallbench.train.trainer import Callback, StepResult
from tests.train.tiny import trainer


class Records:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.records = []

    def log(self, record):
        self.records.append(record)

    def steps(self):
        return [record["step"] for record in self.records]


def result(*, loss=1.0, is_last=False):
    return StepResult(
        learning_rate=0.1,
        grad_norm=1.0,
        skipped=False,
        means={"mlm_loss": torch.tensor(loss)},
        loss=torch.tensor(loss),
        is_last=is_last,
    )


def at(step, seconds=0.0):
    return Progress(step=step, train_seconds=seconds, num_tokens=step, train_flops=float(step))


def drive(callback, steps, seconds_per_step=1.0, last=math.inf):
    """Call it as the trainer does, after steps of so many seconds."""
    for step in steps:
        progress = at(step, step * seconds_per_step)
        callback.after_step(progress, result(loss=float(step), is_last=step == last))


def attached(callback, **values):
    """Give the callback a trainer of its own, with these attributes."""
    callback.trainer = trainer(num_steps=20, callbacks=[callback])
    for name, value in values.items():
        setattr(callback.trainer, name, value)
    return callback


def logging(tracker, **values):
    return attached(LogTraining([tracker], **{"every_steps": 5, "peak_flops": None} | values))


# Records


def test_a_record_comes_at_the_interval_and_at_the_end():
    tracker = Records()
    log = logging(tracker)
    log.on_start(at(0))
    drive(log, range(1, 13), last=12)
    assert tracker.steps() == [5, 10, 12]
    assert [record["loss"] for record in tracker.records] == [3.0, 8.0, 11.5]


def test_slow_steps_are_logged_once_a_minute_at_least():
    tracker = Records()
    log = logging(tracker, every_steps=1000)
    log.on_start(at(0))
    drive(log, range(1, 10), seconds_per_step=25.0)
    assert tracker.steps() == [3, 6, 9]


def test_records_that_are_not_logged_yet_survive_a_restart():
    whole, parts = Records(), Records()
    log = logging(whole)
    log.on_start(at(0))
    drive(log, range(1, 11))
    first, second = logging(parts), logging(parts)
    first.on_start(at(0))
    drive(first, range(1, 8))
    states = json.loads(json.dumps(first.trainer.callback_states()))
    second.trainer.load_callback_states(states)
    second.on_start(at(7, 7.0))
    drive(second, range(8, 11))
    assert [r["loss"] for r in parts.records] == [r["loss"] for r in whole.records]


def test_the_initial_weights_are_evaluated_once_in_the_life_of_a_run():
    made, tracker = trainer(), Records()
    batches, _ = made.batches.read(0)

    def held_out():
        return attached(HeldOutLoss([tracker], batches, every_steps=4, unigram_entropy=3.0))

    first, second = held_out(), held_out()
    first.on_start(at(0))
    drive(first, range(1, 7), last=6)
    second.trainer.load_callback_states(first.trainer.callback_states())
    second.on_start(at(0))
    assert tracker.steps() == [0, 4, 6]
    assert second.trainer.objective.training


def test_a_heartbeat_is_written_once_a_second_at_most(tmp_path):
    beat = Heartbeat(tmp_path / "heartbeat.json", every_seconds=3600.0)
    drive(beat, [1, 2])
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 1


# Checkpoints


class Uploads:
    """In place of a storage: nothing is sent, and it says what it is told to."""

    def __init__(self, *, drains=True, failure=None, problem=None):
        self.drains, self.failure, self.problem = drains, failure, problem
        self.committed_step, self.submitted = 3, []

    def submit(self, checkpoint):
        self.submitted.append(checkpoint.step)

    def drain(self, seconds):
        return self.drains


def saving(folder, *, stop=NEVER, others=(), **values):
    arguments = {"facts": {"precision": "fp32"}, "every_steps": 5, "every_minutes": 30.0}
    store = CheckpointStore(folder)
    callback = SaveCheckpoints(store, **(arguments | values))
    trainer(callbacks=[callback, *others], stop=stop)
    return callback, store


def saved_steps(callback, store, steps, **values):
    seen = []
    for step in steps:
        drive(callback, [step], **values)
        seen += [n for n in store.steps() if n not in seen]
    return seen


def test_checkpoints_come_at_the_interval_and_at_milestones(tmp_path):
    callback, store = saving(tmp_path, milestones=(7,))
    callback.on_start(at(0))
    assert saved_steps(callback, store, range(1, 12)) == [5, 7, 10]


def test_checkpoints_come_by_minutes_too_counted_from_the_last_one(tmp_path):
    callback, store = saving(tmp_path, every_steps=8, every_minutes=2.0)
    callback.on_start(at(0))
    assert saved_steps(callback, store, range(1, 14), seconds_per_step=50.0) == [3, 6, 8, 11]


def test_the_states_of_callbacks_are_in_the_manifest(tmp_path):
    class Counts(Callback):
        name = "counts"

        def state_dict(self):
            return {"count": 3}

    callback, store = saving(tmp_path, others=[Counts()])
    callback.save(at(4))
    manifest = store.newest().manifest
    assert manifest["callbacks"] == {"counts": {"count": 3}}
    assert manifest["progress"]["step"] == manifest["step"] == 4
    assert manifest["precision"] == "fp32"


def test_a_step_is_submitted_once(tmp_path):
    uploads = Uploads()
    callback, _ = saving(tmp_path, uploader=uploads)
    callback.on_start(at(0))
    drive(callback, range(1, 6))
    callback.on_end(at(5), is_done=True)
    assert uploads.submitted == [5]


def test_a_stop_before_the_first_step_or_without_time_saves_nothing(tmp_path):
    callback, store = saving(tmp_path, stop=Stop(lambda: True, lambda: 0.5))
    callback.on_start(at(2))
    with pytest.raises(SmallbenchError, match="before this attempt had done a step"):
        callback.on_end(at(2), is_done=False)
    late, _ = saving(tmp_path / "late", stop=Stop(lambda: True, lambda: -0.5))
    with pytest.raises(UnsavedError, match=r"limit passed before .* resumes from step 0"):
        late.on_end(at(3), is_done=False)
    callback.seconds = 8.0
    with pytest.raises(UnsavedError, match=r"0\.5 s of grace left, but saving takes about 8\.0 s"):
        callback.on_end(at(3), is_done=False)
    assert store.steps() == []


def test_a_stop_without_time_keeps_a_step_that_is_already_saved(tmp_path):
    callback, store = saving(tmp_path, stop=Stop(lambda: True, lambda: 0.5))
    callback.on_start(at(2))
    callback.save(at(3))
    callback.seconds = 8.0
    callback.on_end(at(3), is_done=False)
    assert store.steps() == [3]


def test_a_failed_storage_ends_the_run_after_a_save_unless_the_run_is_anothers():
    saved = []
    callback = WaitForUploads(
        Uploads(failure=UnavailableError("gone")), saved.append, max_seconds=0.0
    )
    with pytest.raises(UnavailableError, match="gone"):
        drive(callback, [1])
    assert len(saved) == 1
    callback = WaitForUploads(Uploads(failure=ConflictError("hers")), saved.append, max_seconds=0.0)
    with pytest.raises(ConflictError):
        drive(callback, [1])
    assert len(saved) == 1


@pytest.mark.parametrize(
    ("is_done", "problem", "error", "said"),
    [
        (True, None, UnavailableError, "its last checkpoint is not stored yet; it is on the"),
        (True, ConflictError("hers"), ConflictError, r"not stored yet \(hers\)"),
        (False, None, UnsavedError, "or from step 3 on another machine"),
    ],
)
def test_a_run_does_not_end_before_its_checkpoint_is_stored(is_done, problem, error, said):
    uploads = Uploads(drains=False, problem=problem)
    callback = WaitForUploads(uploads, lambda progress: None, max_seconds=0.0)
    attached(callback, stop=Stop(seconds_left=lambda: 0.0))
    with pytest.raises(error, match=said):
        callback.on_end(at(9), is_done=is_done)
    uploads.drains = True
    callback.on_end(at(9), is_done=is_done)


# The end


def test_a_run_that_hours_or_flops_ended_says_that_its_rate_has_not_decayed():
    for budget, progress, said in (
        (Budget(max_steps=20, max_seconds=3600.0), at(7, 3600.0), "1 hours are used up at step 7"),
        (Budget(max_steps=20, max_flops=7.0), at(7), "7 FLOPs are used up at step 7 of 20"),
        (Budget(max_steps=20), at(20), ""),
    ):
        assert undecayed(budget, progress).startswith(said)
        assert bool(undecayed(budget, progress)) == bool(said)
