"""A request to stop: who asks, how long is left, and what is said about the work."""

import math
import os
import signal
import time

import pytest

from smallbench.errors import ExitCode, InterruptedRunError, UnsavedError
from smallbench.stop import NEVER, SignalStop, Stop


def test_never_is_never_asked_and_leaves_all_the_time():
    assert not NEVER.asked()
    assert NEVER.seconds_left() == math.inf
    NEVER.raise_if_asked("reading")


def test_any_of_several_may_ask_and_the_time_is_the_first_ones():
    answers = [False, False]
    stop = Stop(lambda: answers[0], lambda: 7.0).or_if(lambda: answers[1])
    assert not stop.asked()
    answers[1] = True
    assert stop.asked()
    answers[:] = [True, False]
    assert stop.asked()
    assert stop.seconds_left() == 7


def test_the_stopped_work_is_named():
    with pytest.raises(InterruptedRunError, match="stopped while reading; run the same command"):
        Stop(lambda: True).raise_if_asked("reading")
    with pytest.raises(UnsavedError):
        Stop(lambda: True).raise_if_asked("waiting", UnsavedError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_once_and_the_grace_counts_down(number):
    with SignalStop(grace_seconds=5.0) as stop:
        assert not stop.asked()
        assert stop.seconds_left() == 5
        os.kill(os.getpid(), number)
        assert stop.asked()
        time.sleep(0.01)
        assert 4 < stop.seconds_left() < 5
    assert signal.getsignal(number) != stop._handle


def test_a_deadline_asks_as_early_as_the_grace_is_long():
    assert not SignalStop(max_seconds=100.0, grace_seconds=5.0).asked()
    near = SignalStop(max_seconds=0.0, grace_seconds=5.0)
    assert near.asked()
    assert near.seconds_left() <= 0


def test_a_second_signal_ends_the_process_unsaved():
    child = os.fork()
    if child == 0:
        with SignalStop():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ExitCode.SIGTERM
