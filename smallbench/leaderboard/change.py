"""Check a pull request: it may change only the files of one entry in `submissions/`.

Reads two commits of a repository by `git diff-tree` and executes nothing from them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smallbench.errors import DataError
from smallbench.leaderboard.evaluation import VERIFIED_FILE
from smallbench.leaderboard.folder import FOLDERS, MAX_BYTES
from smallbench.leaderboard.text import show

ROOT = "submissions"
SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
"""Names that Windows cannot check out, whatever follows the first dot."""
PLAIN_FILE, ABSENT = "100644", "000000"


@dataclass(frozen=True)
class Request:
    """The effect of a pull request."""

    entry: str | None
    """Slug of the entry that it adds or changes; None if no entry remains."""
    problems: tuple[str, ...]
    """Why it cannot be merged; empty if it can."""


def read_request(repository: Path, *, base: str = "HEAD^1", head: str = "HEAD",
                 keeper: bool = False) -> Request:  # fmt: skip
    """Check the changes from `base` to `head`.

    `keeper`: one of the board's keepers has confirmed the request (with a label that only they can
    set). Without it, existing entries and `verified.json` must not change. Raises `DataError` if a
    commit cannot be read.
    """
    modes = _changed_modes(repository, base, head)
    if not any(path.split("/")[0].casefold() == ROOT for path in modes):
        return Request(None, ())
    if [*modes] == [f"{ROOT}/{VERIFIED_FILE}"]:
        problem = f"only keepers of the board may change {VERIFIED_FILE}"
        is_plain = [*modes.values()] == [PLAIN_FILE]
        return Request(None, () if keeper and is_plain else (problem,))
    before = _paths(repository, base)
    problems = [p for path, mode in modes.items() for p in _problems_of(path, mode)]
    slugs = sorted({path.split("/")[1] for path in modes if path.startswith(f"{ROOT}/")})
    if len(slugs) > 1:
        problems.append(f"it touches {len(slugs)} entries: {', '.join(map(show, slugs[:5]))}; "
                        "open one pull request for each")  # fmt: skip
    problems += _collisions(_paths(repository, head))
    existing = {path.split("/")[1] for path in before if path.count("/") > 1}
    for slug in slugs:
        if slug in existing and not keeper:
            problems.append(
                f"{ROOT}/{show(slug)} exists already: a change needs a request by its owner "
                "(the contact in its entry.json), confirmed by a keeper with the label 'keeper'"
            )
    remains = slugs and any(p.startswith(f"{ROOT}/{slugs[0]}/") for p in _paths(repository, head))
    return Request(slugs[0] if len(slugs) == 1 and remains else None, tuple(problems))


def _problems_of(path: str, mode: str) -> list[str]:
    place = show(path)
    parts = path.split("/")
    if parts[0] != ROOT:
        return [
            f"{place} is not a file of an entry; a pull request with an entry changes nothing else"
        ]
    inside = parts[2:]
    is_known = (len(inside) == 1 and inside[0] in MAX_BYTES) or (
        len(inside) == 2
        and inside[0] in FOLDERS
        and FOLDERS[inside[0]][0].fullmatch(inside[1]) is not None
    )
    if len(parts) < 3 or not SLUG.fullmatch(parts[1]) or not is_known:
        known = f"{', '.join(sorted(MAX_BYTES))}, predictions/*.tsv.gz and plugins/*.py"
        return [f"{place} is not a file of an entry ({ROOT}/SLUG/ with {known})"]
    if mode != ABSENT and any(map(DEVICE.fullmatch, parts)):
        return [f"{place} has the name of a device, which Windows cannot check out; rename it"]
    if mode not in (PLAIN_FILE, ABSENT):
        return [f"{place} has mode {mode} (a link, a program or a repository); "
                "expected a plain file"]  # fmt: skip
    return []


def _collisions(paths: Sequence[str]) -> Iterator[str]:
    """Yield a problem for paths that are equal on a file system that ignores case."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            yield f"{show(path)} and {show(other)} differ only in case"


def _changed_modes(repository: Path, base: str, head: str) -> dict[str, str]:
    """Return each path that differs between two commits with its new mode."""
    output = _git(repository, "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-textconv",
                  "--no-ext-diff", base, head)  # fmt: skip
    words = output.split("\0")[:-1]
    return {path: about.split()[1] for about, path in zip(words[::2], words[1::2], strict=True)}


def _paths(repository: Path, commit: str) -> list[str]:
    output = _git(repository, "ls-tree", "-r", "-z", "--name-only", commit, f"{ROOT}/")
    return output.split("\0")[:-1]


def _git(repository: Path, *words: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *words]
    done = subprocess.run(command, cwd=repository, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip()
        raise DataError(f"git {words[0]} failed in {repository}: {show(reason)}")
    return done.stdout.decode("utf-8", "surrogateescape")
