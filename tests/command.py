"""Call the console script in this process, since importing torch again takes seconds."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from smallbench import plugins
from smallbench.jobs.cli import main


@dataclass(frozen=True)
class Finished:
    """What `subprocess.run` would return."""

    returncode: int
    stdout: str
    stderr: str


def command(*words: object, code: int | None = 0) -> Finished:
    """Run `smallbench WORDS`; with `code`, check the exit code."""
    out, err = io.StringIO(), io.StringIO()
    fresh = mock.patch.multiple(plugins, _FILES={}, _GIVEN=set())  # as a new process has them
    with redirect_stdout(out), redirect_stderr(err), fresh:
        ended = main(list(map(str, words)))
    assert code is None or ended == code, err.getvalue()
    return Finished(ended, out.getvalue(), err.getvalue())
