"""Processes that were started together, and variables that a scheduler has left."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from smallbench.errors import ConfigError, UnsavedError
from smallbench.train.processes import ALONE, LAUNCHED, join_processes, local_device

CPU = torch.device("cpu")


@pytest.fixture
def environment(monkeypatch):
    for name in (*LAUNCHED, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(n, v) for n, v in values.items()]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    "values", [{}, {"WORLD_SIZE": "1"}, {"RANK": "3"}, {"LOCAL_RANK": "3"}, {"SLURM_NTASKS": "4"}]
)
def test_one_process_is_alone_whatever_a_scheduler_has_left(environment, values):
    environment(**values)
    assert join_processes(CPU) is ALONE
    assert local_device(torch.device("cuda")) == torch.device("cuda")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "WORLD_SIZE=4 is set without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1"}, "without MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "Invalid RANK=4 and WORLD_SIZE=4"),
        ({"RANK": "a", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "0 <= RANK < WORLD_SIZE"),
    ],
)
def test_variables_of_another_launcher_are_refused(environment, values, said):
    environment(WORLD_SIZE="4", **values)
    with pytest.raises(ConfigError, match=said) as caught:
        join_processes(CPU)
    assert "torchrun" in str(caught.value)


def test_a_size_that_is_not_a_number_is_refused(environment):
    environment(WORLD_SIZE="all", RANK="0", MASTER_ADDR="x", MASTER_PORT="1")
    with pytest.raises(ConfigError, match="WORLD_SIZE=all"):
        join_processes(CPU)


PROGRAM = """
import sys, torch
from smallbench.errors import SmallbenchError
from smallbench.stop import SignalStop
from smallbench.train import processes
processes.SAY_SECONDS = 0.0
with SignalStop() as stop:
    try:
        processes.join_processes(torch.device("cpu"), stop=stop)
    except SmallbenchError as error:
        sys.exit(error.exit_code)
"""


def test_a_process_that_waits_for_the_others_says_so_and_obeys_sigterm(port):
    clean = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
    values = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=clean | values, stderr=subprocess.PIPE, text=True
    )
    assert "waiting for 2 processes" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == UnsavedError.exit_code
