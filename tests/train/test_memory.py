"""Freed memory is used again instead of fetched from the kernel, page by page."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from smallbench.train.memory import keep_freed_memory

assert sys.argv[1] == "as it is" or keep_freed_memory()
for repeat in range(40):
    blocks = [torch.ones(12_000_000) for _ in range(2)]  # 48 MB each, over glibc's own threshold
    del blocks
    if repeat == 9:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_used_again():
    """In processes of their own: the setting is the process's, and other tests must not matter."""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True
            ).stdout
        )
        for how in ("as it is", "kept")
    }
    assert faults["kept"] * 20 < faults["as it is"]
