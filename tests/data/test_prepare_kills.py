"""Preparing that is killed or stopped at any point and continued gives the same files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.data.shards import TokenRows
from smallbench.errors import DataError, InterruptedRunError, UnavailableError
from smallbench.stop import Stop
from tests.data.conftest import SMALL_CHUNKS, SMALL_COMMITS, SMALL_SHARDS
from tests.data.test_prepare import content

pytestmark = pytest.mark.usefixtures("small_steps")


DRIVER = f"""
import sys
from pathlib import Path
from smallbench.config import from_dict
from smallbench.data import prepare, shards, source
from smallbench.data.config import PrepareConfig
import json
source.CHUNK_BYTES, prepare.COMMIT_BYTES = {SMALL_CHUNKS}, {SMALL_COMMITS}
shards.SHARD_BYTES = {SMALL_SHARDS}
commit = prepare.write_json
def write_json(path, content):
    # A point of commit is a line of output, at which the test may kill.
    print("before", flush=True)
    commit(path, content)
    print("after", flush=True)
    sys.stdin.readline()
prepare.write_json = write_json
if __name__ == "__main__":
    config = from_dict(PrepareConfig, json.loads(sys.argv[1]))
    prepare.prepare(config, out=Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


@pytest.fixture
def driver(config: PrepareConfig, tmp_path: Path):
    """Starts `prepare` in a process of its own, which waits for a line after each commit."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)

    def start(out: Path, workers: int) -> subprocess.Popen[str]:
        from smallbench.config import to_dict

        arguments = [json.dumps(to_dict(config)), str(out), str(workers)]
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,
        )

    return start


def reach_commit(process: subprocess.Popen[str], number: int, moment: str) -> bool:
    """Let `process` run until just before or after its commit `number`; False if it ended."""
    assert process.stdin
    assert process.stdout
    seen = 0
    for line in process.stdout:
        if line.strip() == moment:
            seen += 1
            if seen == number:
                return True
        if line.strip() == "after":
            process.stdin.write("\n")
            process.stdin.flush()
    return False


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_killed_at_commits_and_restarted_equals_uninterrupted(
    config: PrepareConfig, driver, tmp_path: Path, moment: str
):
    prepare(config, out=tmp_path / "whole", workers=1)
    out, kills = tmp_path / "killed", 0
    # Each attempt gets further by some commits; the last ends by itself.
    for attempt in range(20):
        process = driver(out, 1)
        if not reach_commit(process, 2 + 8 * attempt, moment):
            assert process.wait() == 0
            break
        process.kill()
        process.communicate()
        kills += 1
    assert kills >= 2
    assert content(out) == content(tmp_path / "whole")


def test_killed_at_random_moments_with_workers_equals_uninterrupted(
    config: PrepareConfig, driver, tmp_path: Path
):
    prepare(config, out=tmp_path / "whole", workers=1)
    out, source = tmp_path / "killed", random.Random(5)
    for _ in range(3):
        process = driver(out, 2)
        if reach_commit(process, 2, "after"):
            process.stdin.write("\n" * 50)  # run on, to be killed anywhere
            process.stdin.flush()
            time.sleep(source.uniform(0.0, 0.06))
        process.kill()
        process.communicate()  # ends only when the workers, which hold stdout, have ended too
    prepare(config, out=out, workers=2)
    assert content(out) == content(tmp_path / "whole")


def test_stop_commits_and_the_same_call_continues(config: PrepareConfig, tmp_path: Path):
    prepare(config, out=tmp_path / "whole", workers=1)
    out = tmp_path / "out"
    for polls in (1, 4, 9):
        countdown: Iterator[int] = iter(range(polls - 1))
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            prepare(
                config, out=out, workers=1, stop=Stop(lambda c=countdown: next(c, None) is None)
            )
        assert not (out / "manifest.json").exists()
        with pytest.raises(DataError, match="or not complete"):
            TokenRows(out, "train")
    prepare(config, out=out, workers=1)
    assert content(out) == content(tmp_path / "whole")


def test_killed_worker_is_one_sentence_and_the_run_continues(config: PrepareConfig, tmp_path: Path):
    out = tmp_path / "out"

    def kill_children() -> bool:
        for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"spawn_main" in name:
                os.kill(int(pid), signal.SIGKILL)
        return False

    if not Path("/proc/self/task").exists():
        pytest.skip("finds the workers in /proc")
    with pytest.raises(UnavailableError, match="--workers=2"):
        prepare(config, out=out, workers=2, stop=Stop(kill_children))
    prepare(config, out=out, workers=1)
    prepare(config, out=tmp_path / "whole", workers=1)
    assert content(out) == content(tmp_path / "whole")
