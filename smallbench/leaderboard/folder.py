"""Read an untrusted entry's folder as data, under limits.

Nothing in it is executed, followed or unpacked. Only files of known names are opened, and each is
read up to a fixed size. Anything else raises `Rejected` with the check and the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from smallbench.glue.choice import CHOICE
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import (
    ENTRY_FILE,
    LOG_FILE,
    PLUGINS_FOLDER,
    PREDICTIONS_FOLDER,
    RUNS_FILE,
    SCHEMA_VERSION,
    Entry,
    StoredRun,
    entry_from_dict,
    is_log_line,
    schema,
)
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.predictions import MAX_PREDICTIONS_BYTES, parse_predictions
from smallbench.leaderboard.text import is_blank, is_invisible, show, texts
from smallbench.plugins import sha256_of

# Several times what an honest entry needs, but small enough to read in seconds.
MAX_FILES = 1_000
MAX_BYTES = {ENTRY_FILE: 256 << 10, RUNS_FILE: 1 << 20, LOG_FILE: 16 << 20}
MAX_FOLDER_BYTES = 64 << 20
MAX_RUNS = 300  # four learning rates with five seeds on eight tasks are 160
MAX_LOG_LINES = 50_000
MAX_RECORD_BYTES = 4 << 10  # a line of either .jsonl; they have about 300
MAX_JSON_DEPTH = 12
# Sums and ratios of such numbers, and a chart's scale over them, stay finite.
MAX_NUMBER, MIN_NUMBER = 1e30, 1e-30
MAX_INTEGER = (1 << 64) - 1

_TASK = re.compile(rb'"task": ?"([a-z0-9]+)"')
FOLDERS = {
    PREDICTIONS_FOLDER: (
        re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}\.tsv\.gz"),
        MAX_PREDICTIONS_BYTES,
    ),
    # None that pytest would execute where it is run in the board's folder.
    PLUGINS_FOLDER: (
        re.compile(r"(?!conftest\.py|test_)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}(?<!_test)\.py"),
        1 << 20,
    ),
}
"""Folder of an entry → pattern of its file names, and their largest size."""


@dataclass(frozen=True, eq=False)
class Submission:
    """A parsed entry, well-formed but not checked yet."""

    folder: Path
    entry: Entry
    runs: Sequence[StoredRun]
    """Runs with dev scores; empty if `entry.finetune` is None."""
    choices: Sequence[StoredRun]
    """Runs that chose a learning rate, scored on a part of train (`glue.choice`)."""
    predictions: Mapping[str, NDArray[Any]]
    """File to [N] classes or scores."""
    train_log: Sequence[Mapping[str, Any]]
    """Lines of the log, oldest first; empty if there is no log."""


def read_submission(folder: Path) -> Submission:
    """Read every file of a folder; raise `Rejected` for the first malformed one."""
    return parse_submission(folder, read_files(folder))


def parse_submission(folder: Path, contents: Mapping[str, bytes]) -> Submission:
    """Parse what `read_files` returned for a folder."""
    entry = _parse_entry(contents[ENTRY_FILE], folder)
    if entry.tier == "reported":
        extra = sorted(set(contents) - {ENTRY_FILE})
        if extra:
            raise Rejected("files", f"tier 'reported' has {ENTRY_FILE} only, not {show(extra[0])}")
        return Submission(folder, entry, (), (), {}, ())
    if entry.tier == "reference" and LOG_FILE in contents:
        raise Rejected("files", f"tier 'reference' is of random weights and has no {LOG_FILE}")
    runs = _parse_runs(contents)
    predictions = {
        path: parse_predictions(contents[path], path, TASKS[run.task], split)
        for run in runs
        for split, path in run.predictions.items()
    }
    _require_plugins(entry, contents)
    on_dev = [run for run in runs if "dev" in run.predictions]
    if not on_dev:
        raise Rejected("runs", f"{RUNS_FILE} has no run with dev scores")
    choices = [run for run in runs if CHOICE in run.predictions]
    return Submission(folder, entry, on_dev, choices, predictions, _parse_log(contents))


def chosen_tasks(folders: Iterable[Path]) -> set[str]:
    """Return the tasks with predictions that chose a learning rate, over all folders.

    Called before the entries are read one by one; a folder that cannot be read is skipped.
    """
    found: set[str] = set()
    for folder in folders:
        with suppress(Rejected):
            for line in read_bytes(folder / RUNS_FILE, MAX_BYTES[RUNS_FILE]).splitlines():
                if b'"choice"' in line and (task := _TASK.search(line)):
                    found.add(task[1].decode())
    return found & TASKS.keys()


def prepare_schema() -> None:
    """Import and compile what reads an entry, before processes are forked, which share it."""
    _validator(""), _validator("run")


# ---- files


def list_files(folder: Path) -> dict[str, os.stat_result]:
    """Return the status of each file by its path below `folder`.

    Raises `Rejected` for links, special files, unknown names, and too many or too large files.
    """
    found = _statuses(folder, "")
    for below in FOLDERS:
        if found.pop(below, None) is not None:
            found |= _statuses(folder / below, f"{below}/")
    if len(found) > MAX_FILES:
        raise Rejected("files", f"more than {MAX_FILES:,} files")
    for path, status in found.items():
        folder_name, _, name = path.rpartition("/")
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("files", f"{show(path)} is not a regular file (a link?)")
        if folder_name and not FOLDERS[folder_name][0].fullmatch(name):
            raise Rejected("files", f"{show(path)} has an unexpected name for its folder")
        if not folder_name and name not in MAX_BYTES:
            raise Rejected("files", f"{show(path)} is not a file of an entry")
        limit = FOLDERS[folder_name][1] if folder_name else MAX_BYTES[name]
        if status.st_size > limit:
            raise Rejected("files", f"{path} has {status.st_size:,} bytes, more than {limit:,}")
    if sum(status.st_size for status in found.values()) > MAX_FOLDER_BYTES:
        raise Rejected("files", f"more than {MAX_FOLDER_BYTES:,} bytes altogether")
    if ENTRY_FILE not in found:
        raise Rejected("files", f"{ENTRY_FILE} is missing")
    return found


def _statuses(place: Path, prefix: str) -> dict[str, os.stat_result]:
    try:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise Rejected("files", f"{show(prefix or place.name)} is not a folder")
        with os.scandir(place) as found:
            return {
                prefix + entry.name: entry.stat(follow_symlinks=False)
                for entry in islice(found, MAX_FILES + 1)
            }
    except OSError as error:  # or deleted after it was listed
        raise Rejected("files", f"{show(place.name)}: {error.strerror}") from None


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file that `list_files` accepts, by path.

    Each is read once, so that the hashed bytes are the checked ones.
    """
    found = list_files(folder)
    return {path: read_bytes(folder / path, status.st_size) for path, status in found.items()}


def fingerprint(contents: Mapping[str, bytes]) -> str:
    """Return a SHA-256 over every file of a folder."""
    sha = hashlib.sha256()
    for path, content in sorted(contents.items()):
        sha.update(f"{path} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()


def read_bytes(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file; links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Rejected("files", f"{show(path.name)} is not a regular file")
            content = stream.read(limit + 1)
    except OSError as error:
        raise Rejected("files", f"{show(path.name)}: {error.strerror}") from None
    if len(content) > limit:
        raise Rejected("files", f"{show(path.name)} has more than {limit:,} bytes")
    return content


# ---- JSON


def parse_untrusted_json(content: bytes, *, check: str, place: str) -> Any:
    """Parse a JSON value of bounded depth, with finite numbers and no key twice."""
    try:
        value = _DECODER.decode(content.decode("utf-8"))
        _require_plain([value], MAX_JSON_DEPTH)
    except RecursionError:
        raise Rejected(check, f"{place} is nested deeper than {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:
        raise Rejected(check, f"{place} is not valid JSON: {show(str(error))}") from None
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)


def _require_plain(value: Any, depth: int) -> None:
    for member in value.values() if type(value) is dict else value:
        kind = type(member)
        most = MAX_NUMBER if kind is float else MAX_INTEGER
        if (kind is float or kind is int) and not abs(member) <= most:
            raise ValueError("a number is too large")
        if kind is float and 0 < abs(member) < MIN_NUMBER:
            raise ValueError("a number is too small")
        if kind is dict or kind is list:
            if depth == 0:
                raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
            _require_plain(member, depth - 1)


def _parse_entry(raw: bytes, folder: Path) -> Entry:
    content = parse_untrusted_json(raw, check="schema", place=ENTRY_FILE)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION or type(version) is not int:
        raise Rejected(
            "schema", f"schema_version {show(version)}; this smallbench reads {SCHEMA_VERSION}"
        )
    _require_valid(content, "", check="schema", place=ENTRY_FILE)
    _require_visible(content)
    entry = entry_from_dict(content)
    if entry.slug != folder.resolve().name:
        raise Rejected("slug", f"slug {entry.slug!r} is not the folder's name {show(folder.name)}")
    return entry


def is_allowed(place: str, value: Any) -> bool:
    """Return whether an entry may have a value at `place`, such as `links.code`."""
    content = list(value) if isinstance(value, tuple) else value
    for key in reversed(place.split(".")):
        content = {key: content}
    if any(error.validator != "required" for error in _validator("").iter_errors(content)):
        return False
    with suppress(Rejected):
        _require_visible(content)
        return True
    return False


def _require_visible(content: Any) -> None:
    for place, text in texts(content, ""):
        bad = next((c for c in text if is_invisible(c)), None)
        if bad is not None:
            name = unicodedata.name(bad, f"U+{ord(bad):04X}")
            raise Rejected("text", f"{place} has an invisible character ({name})")
        if not place.startswith("provenance.") and is_blank(text):
            raise Rejected("text", f"{place} is blank")


def _require_valid(value: Any, part: str, *, check: str, place: str) -> None:
    errors = sorted(
        islice(_validator(part).iter_errors(value), 20), key=lambda e: list(map(str, e.path))
    )
    if errors:
        messages = ("this tier has none" if e.validator == "not" else e.message for e in errors)
        paths = (".".join(map(str, e.absolute_path)) or place for e in errors)
        found = [f"{path}: {message}" for path, message in zip(paths, messages, strict=True)]
        raise Rejected(check, "; ".join(show(sentence) for sentence in found[:5]))


@cache
def _validator(part: str) -> Any:
    """Return the validator of an entry or of a part in `$defs`; 1.0 is not an integer."""
    import jsonschema  # half a second, and not needed for cached entries

    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    )
    strict = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"pattern": _pattern}, type_checker=types
    )
    definitions = schema()["$defs"]
    node = definitions[part] if part else schema()
    return strict({**_inlined(node, definitions), "$defs": definitions})


def _pattern(validator: Any, pattern: str, value: Any, node: Any) -> Iterator[Exception]:
    """Match the whole text; `$` would allow a line break after it."""
    import jsonschema

    if isinstance(value, str) and not re.fullmatch(pattern, value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Inline all references but the recursive one; resolving them took half of the time."""
    if isinstance(node, list):
        return [_inlined(member, definitions) for member in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("$ref")).removeprefix("#/$defs/")
    if name in definitions and name != "config":
        node = {**definitions[name], **node}
        del node["$ref"]
    return {key: _inlined(member, definitions) for key, member in node.items() if key != "$defs"}


def _require_plugins(entry: Entry, contents: Mapping[str, bytes]) -> None:
    given = {path for path in contents if path.startswith(f"{PLUGINS_FOLDER}/")}
    for plugin in entry.provenance.plugins if entry.provenance else ():
        place = f"the plug-in {show(plugin['name'])}"
        missing = set(plugin["files"].values()) - given
        if missing:
            raise Rejected("plugins", f"{place}: {sorted(missing)[0]} is missing")
        texts = {name: contents[path] for name, path in plugin["files"].items()}
        if sha256_of(plugin["name"], texts) != plugin["sha256"]:
            raise Rejected("plugins", f"{place}: its files do not match its SHA-256")
        try:
            for text in texts.values():
                text.decode()
        except UnicodeDecodeError:
            raise Rejected("plugins", f"{place} is not UTF-8 text") from None
        given -= set(plugin["files"].values())
    if given:
        raise Rejected("plugins", f"{sorted(given)[0]} does not belong to a plug-in of the entry")


# ---- runs and their predictions


def _lines(contents: Mapping[str, bytes], name: str, *, check: str, most: int) -> list[Any]:
    content = contents[name]
    if content and not content.endswith(b"\n"):
        raise Rejected(check, f"{name} is truncated: its last line has no line break")
    lines = content.split(b"\n")[:-1]
    if len(lines) > most:
        raise Rejected(check, f"{name} has more than {most:,} lines")
    if max(map(len, lines), default=0) > MAX_RECORD_BYTES:
        raise Rejected(check, f"{name} has a line of more than {MAX_RECORD_BYTES:,} bytes")
    return [
        parse_untrusted_json(line, check=check, place=f"{name}, line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def _parse_runs(contents: Mapping[str, bytes]) -> list[StoredRun]:
    if RUNS_FILE not in contents:
        raise Rejected("runs", f"{RUNS_FILE} is missing")
    lines = _lines(contents, RUNS_FILE, check="runs", most=MAX_RUNS)
    runs: list[StoredRun] = []
    used: set[str] = set()
    trials = set()
    for number, line in enumerate(lines, start=1):
        place = f"{RUNS_FILE}, line {number}"
        _require_valid(line, "run", check="runs", place=place)
        run = StoredRun(**line)
        splits = set(run.predictions)
        if splits not in ({CHOICE}, set(TASKS[run.task].dev_splits)):
            raise Rejected("runs", f"{place}: {run.task} needs {TASKS[run.task].dev_splits}")
        trial = (run.task, run.learning_rate, run.seed, run.epochs, CHOICE in splits)
        if trial in trials:
            raise Rejected("seeds", f"{place}: {run.task} has seed {run.seed} twice")
        trials.add(trial)
        for path in run.predictions.values():
            if path not in contents:
                raise Rejected("runs", f"{place}: {show(path)} is missing")
            if path in used:
                raise Rejected("runs", f"{place}: {path} already belongs to another run")
            used.add(path)
        runs.append(run)
    if not runs:
        raise Rejected("runs", f"{RUNS_FILE} has no runs")
    predictions = {path for path in contents if path.startswith(f"{PREDICTIONS_FOLDER}/")}
    stray = sorted(predictions - used)
    if stray:
        raise Rejected("runs", f"{stray[0]} does not belong to a run")
    return runs


# ---- the training log


def _parse_log(contents: Mapping[str, bytes]) -> list[Mapping[str, Any]]:
    if LOG_FILE not in contents:
        return []
    lines = _lines(contents, LOG_FILE, check="log", most=MAX_LOG_LINES)
    for number, line in enumerate(lines, start=1):
        # Checked by hand: a schema validator would take seconds for so many lines.
        if not is_log_line(line):
            raise Rejected("log", f"{LOG_FILE}, line {number}: not the keys and types of a record")
    return lines
