"""The number of cores, on every system."""

import os

from smallbench.cores import available_cpus


def test_cores_that_are_not_ours_do_not_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cpus() == 2


def test_where_the_system_does_not_say_all_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cpus() == os.cpu_count()
