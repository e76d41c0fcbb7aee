"""Freed memory is used again instead of fetched from the kernel, page by page."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from smallbench.train.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_of_ten_repeats():
    for repeat in range(15):
        blocks = [torch.ones(9_000_000) for _ in range(2)]  # 36 MB each, over glibc's threshold
        del blocks
        if repeat == 4:
            before = faults()
    return faults() - before

as_it_is = faults_of_ten_repeats()
assert keep_freed_memory()
print(as_it_is, faults_of_ten_repeats())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_used_again():
    """In a process of its own: the setting is the process's, and other tests must not matter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    as_it_is, kept = map(int, done.stdout.split())
    assert kept * 20 < as_it_is
