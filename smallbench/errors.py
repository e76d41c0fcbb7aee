"""The errors of jobs, each with the exit code that tells a scheduler what to do.

Every job ends with one of these codes; `jobs.cli` prints the message on one line and exits. A
message has the value, the expectation and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a job's exit code says, for people and for a pod's failure policy."""

    DONE = 0
    CRASH = 1
    USAGE = 2
    """Wrong flag, stray word, or a value that a flag does not take: nothing was started."""
    DATA = 65
    """Data unusable, or every checkpoint damaged."""
    UNAVAILABLE = 69
    """Something this job depends on (a package, a server, a disk, a GPU) is not there."""
    DIVERGED = 70
    """The loss was not finite too many times in a row."""
    INTERRUPTED = 75
    """Saved and interrupted: run the same command again."""
    CONFLICT = 76
    """Another writer holds the run."""
    CREDENTIALS = 77
    """Credentials refused."""
    CONFIG = 78
    """The configuration contradicts itself, the data or the run that it would continue, or names
    something unknown, such as a recipe."""
    SIGINT = 130
    """Interrupted by Ctrl-C without a save."""
    SIGTERM = 143
    """Ended by SIGTERM without a save."""


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the ending of an error about `name`: the nearest known name, or all of them.

    `prefix` is what a user writes before each name (`--`); it does not count as similarity.
    """
    names = sorted(known)
    by_lower_case = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if found := by_lower_case.get(name.lower()) or (close[0] if close else None):
        return f"did you mean {prefix + found!r}?"
    return f"known: {', '.join(prefix + other for other in names) or 'none'}"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class SmallbenchError(ValueError):
    """A failure with a sentence for the user and an exit code for the scheduler."""

    exit_code: ExitCode = ExitCode.CRASH


class UsageError(SmallbenchError):
    """The command line is wrong; nothing was started."""

    exit_code = ExitCode.USAGE


class ConfigError(SmallbenchError):
    """A configuration is not valid by itself or does not fit the data or the run.

    Also for a name that no table has (of a recipe, a task, a card), since a name may stand in a
    file as well as on the command line.
    """

    exit_code = ExitCode.CONFIG


class DataError(SmallbenchError):
    """Input data or stored results cannot be used."""

    exit_code = ExitCode.DATA


class UnavailableError(SmallbenchError):
    """A package, server or device that this job needs is missing."""

    exit_code = ExitCode.UNAVAILABLE


class DivergedError(SmallbenchError):
    """Training produced too many non-finite losses in a row."""

    exit_code = ExitCode.DIVERGED


class InterruptedRunError(SmallbenchError):
    """The run was stopped; the same command continues from the stored state."""

    exit_code = ExitCode.INTERRUPTED


class UnsavedError(SmallbenchError):
    """The run was stopped, and the grace period was too short for a commit."""

    exit_code = ExitCode.SIGTERM


class ConflictError(SmallbenchError):
    """Another process writes to the same run."""

    exit_code = ExitCode.CONFLICT


class CredentialsError(SmallbenchError):
    """A server refused the credentials."""

    exit_code = ExitCode.CREDENTIALS
