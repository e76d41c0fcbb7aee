"""A run ends with its budget, decays fully within it, and is the same when it was interrupted."""

import math
from itertools import pairwise

import pytest

from smallbench.errors import ConfigError
from smallbench.objectives.config import MaskedLMConfig
from smallbench.stop import Stop
from smallbench.train.batch_sources import ReadAhead
from smallbench.train.budget import Budget
from smallbench.train.config import ScheduleConfig
from smallbench.train.schedule import linear_decay, ramped_batch_size
from smallbench.train.trainer import Callback, Progress
from tests.train.tiny import trainer

HOURS = Budget(max_seconds=100.0, along="hours")


class Clock:
    """Each step takes the next of these seconds; asked twice a step."""

    def __init__(self, *seconds):
        self.now, self.asked, self.seconds = 0.0, 0, seconds

    def __call__(self):
        self.asked += 1
        if self.asked % 2 == 0:
            self.now += self.seconds[(self.asked // 2 - 1) % len(self.seconds)]
        return self.now


class Seen(Callback):
    """What each step was done with."""

    def __init__(self):
        self.rates, self.seconds, self.is_last = [], [], []

    def after_step(self, progress, result):
        self.rates.append(result.learning_rate)
        self.seconds.append(progress.train_seconds)
        self.is_last.append(result.is_last)


def run_along(budget, clock, progress=None, stop_after=math.inf):
    seen = Seen()
    made = trainer(
        callbacks=[seen], progress=progress, stop=Stop(lambda: len(seen.rates) >= stop_after)
    )
    made.budget, made.clock = budget, clock

    def rate(progress):
        return linear_decay(progress.train_seconds, total=budget.max_seconds, warmup=10)

    made.learning_rate = rate
    return made, seen, made.run()


@pytest.mark.parametrize("seconds", [(1.0,), (7.0,), (3.0, 0.5, 9.0), (99.0,), (250.0,)])
def test_hours_end_within_one_step_of_the_budget(seconds):
    made, seen, is_done = run_along(HOURS, Clock(*seconds))
    assert is_done
    assert made.progress.train_seconds >= 100
    assert made.progress.train_seconds - max(seconds) < 100
    assert seen.is_last == [False] * (len(seen.rates) - 1) + [True]


def test_the_rate_decays_fully_within_the_hours():
    _, seen, _ = run_along(HOURS, Clock(1.0))
    assert len(seen.rates) == 100
    assert max(seen.rates) == 1
    assert seen.rates[-1] == pytest.approx(1 / 90)  # the last step's share; after it, zero
    assert all(a > b for a, b in pairwise(seen.rates[10:]))


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_an_interrupted_budget_gives_the_same_schedule(stop_after):
    seconds = (3.0, 0.5, 9.0, 4.0)
    _, whole, _ = run_along(HOURS, Clock(*seconds))
    clock = Clock(*seconds)
    first, before, is_done = run_along(HOURS, clock, stop_after=stop_after)
    assert not is_done
    clock.now += 1e6  # the hours between two attempts do not count
    progress = Progress(**first.progress.state_dict())
    _, after, _ = run_along(HOURS, clock, progress)
    assert before.rates + after.rates == whole.rates
    assert before.seconds + after.seconds == pytest.approx(whole.seconds)


def test_with_steps_the_hours_only_end_it():
    made, _, is_done = run_along(Budget(max_steps=1000, max_seconds=12.0), Clock(5.0))
    assert is_done
    assert made.progress.step == 3


def test_parts_and_what_is_left():
    def at(step=0, seconds=0.0, flops=0.0):
        return Progress(step=step, train_seconds=seconds, train_flops=flops)

    steps, flops = Budget(max_steps=200), Budget(max_flops=1e12, along="flops")
    assert [steps.fraction(at(n, 1e9)) for n in (0, 50, 200, 300)] == [0, 0.25, 1, 1]
    assert HOURS.fraction(at(10**9, 25.0)) == 0.25
    assert flops.fraction(at(10**9, 1e9, 5e11)) == 0.5
    assert not HOURS.is_over(at(10**9, 99.9, 1e30))
    assert HOURS.is_over(at(0, 100.0))
    assert [flops.is_over(at(10**9, 1e9, f)) for f in (9e11, 1e12)] == [False, True]
    assert Budget(max_steps=0).fraction(at()) == 1
    assert steps.seconds_left(at(50), seconds_per_step=2.0) == 300
    assert HOURS.seconds_left(at(50, 30.0), seconds_per_step=2.0) == 70
    assert Budget(200, 100.0).seconds_left(at(50, 30.0), seconds_per_step=2.0) == 70
    left = flops.seconds_left(at(50, 30.0, 9e11), seconds_per_step=2.0, flops_per_step=1e10)
    assert left == 20


def test_the_batch_grows_in_whole_micro_batches():
    def size(fraction):
        return ramped_batch_size(fraction, first=32, last=256, until=0.5, multiple=32)

    sizes = [size(n / 100) for n in range(101)]
    assert sizes[0] == 32
    assert sizes[50:] == [256] * 51
    assert all(a <= b for a, b in pairwise(sizes))
    assert {s % 32 for s in sizes} == {0}
    assert set(sizes) == set(range(32, 257, 32))


def test_the_masking_rate_goes_from_one_to_the_other():
    config = MaskedLMConfig(mask_fraction=0.3, final_mask_fraction=0.15)
    assert config.mask_fraction_at(0.0) == 0.3
    assert config.mask_fraction_at(0.5) == pytest.approx(0.225)
    assert config.mask_fraction_at(1.0) == pytest.approx(0.15)
    assert MaskedLMConfig(mask_fraction=0.15).mask_fraction_at(0.7) == 0.15


class Fractions:
    """A source that notes which part of the run its batches are made for."""

    def __init__(self, source):
        self.source, self.seen = source, []

    def read(self, position, fraction=0.0):
        self.seen.append(fraction)
        return self.source.read(position, fraction)


def test_batches_are_made_one_step_ahead_and_an_interruption_does_not_show():
    def run(progress=None, num_steps=20):
        made = trainer(progress=progress, stop=Stop(lambda: made.progress.step == num_steps))
        made.batches = Fractions(made.batches)
        made.run()
        return made

    whole = run().batches.seen
    assert whole == [max(n - 1, 0) / 20 for n in range(20)]
    first = run(num_steps=7)
    second = run(Progress(**first.progress.state_dict()))
    assert first.batches.seen + second.batches.seen == whole


def test_what_is_read_ahead_is_what_the_next_step_asks_for():
    made = trainer()
    source = Fractions(made.batches)
    made.batches = ReadAhead(
        source, next_fraction=lambda: made.budget.fraction(made.progress), pin_memory=False
    )
    made.run()
    made.batches.close()
    assert source.seen[:20] == [max(n - 1, 0) / 20 for n in range(20)], "none was made twice"


def test_the_base_of_all_schedules_is_refused_with_the_names_of_the_others():
    with pytest.raises(ConfigError, match="use LinearSchedule"):
        ScheduleConfig()
