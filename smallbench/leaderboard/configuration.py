"""The configuration of an entry: can a pretraining be made from it?"""

from __future__ import annotations

import json
import re
from dataclasses import fields

from smallbench.config import flatten
from smallbench.errors import DataError, nearest
from smallbench.leaderboard.entry import SIZE_NAMES, Entry
from smallbench.leaderboard.finding import Found
from smallbench.leaderboard.folder import Submission
from smallbench.leaderboard.scores import RunScores
from smallbench.leaderboard.text import show
from smallbench.plugins import is_reference
from smallbench.train.config import PretrainConfig

NAME = re.compile(r"[^-~/][^/]*")
"""A row of a table, `FILE.py:NAME` or `package.module:NAME`; neither a path nor a flag."""
PLUGIN_PATH = re.compile(r"([^.,/][^,/]*/)*[^.,/][^,/]*")
"""A path inside a folder; `--plugin` separates by commas."""
NEEDED = (
    "sequence_length", "model.architecture", "objective.objective", "train.max_steps",
    "train.global_batch_size", "train.seed",
)  # fmt: skip
"""Keys that the configuration of every run has, besides its sizes."""


def configuration(submission: Submission, scores: RunScores) -> Found:
    """The configuration has what other checks compare with it, and a pretraining can be made."""
    model, flat = submission.entry.model, flatten(submission.entry.measured.provenance.config)
    sizes = (f"model.{name}" for name in SIZE_NAMES if getattr(model, name) is not None)
    missing = [key for key in (*NEEDED, *sizes) if flat.get(key) is None]
    if missing:
        yield "not done", f"{missing[0]} is missing in the configuration"
        return
    try:
        require_plugins(submission.entry)
    except DataError as error:
        yield "not done", f"it cannot be repeated: {show(str(error))}"


def require_plugins(entry: Entry) -> None:
    """Raise `DataError` if plug-ins cannot be written, or the configuration names other code."""
    plugins = entry.measured.provenance.plugins
    for plugin in plugins:
        if not all(map(PLUGIN_PATH.fullmatch, (plugin["name"], *plugin["files"]))):
            place = f"the plug-in {show(plugin['name'])}"
            raise DataError(f"{place} has a file outside its folder, or of a strange name")
    brought = {plugin["name"] for plugin in plugins}
    for key, name in names_of(entry).items():
        place = name.rpartition(":")[0]
        place = place if place.endswith(".py") else place.partition(".")[0]
        if is_reference(name) and place not in brought:
            raise DataError(f"{key} {name!r} names code that is not in the entry's plugins/")


def names_of(entry: Entry) -> dict[str, str]:
    """Return what may be a plug-in, by its key: the recipe, and the name in each section.

    Raises `DataError` for one with a folder, and for a key that `PretrainConfig` does not have.
    """
    config = entry.measured.provenance.config
    known = {f.name: f.metadata.get("table") for f in fields(PretrainConfig)}
    for key in config:
        if key not in known:
            ending = nearest(key, known)
            raise DataError(f"unknown key {key!r} in the entry's configuration; {ending}")
    settings = flatten(config)
    keys = [f"{section}.{table.kind}" for section, table in known.items() if table is not None]
    found = {"recipe": settings.get("recipe") or entry.measured.model.architecture}
    found |= {key: settings[key] for key in keys if settings.get(key) is not None}
    names = {key: word(value) for key, value in found.items()}
    for key, name in names.items():
        if not NAME.fullmatch(name):
            raise DataError(
                f"{key} {show(name)!r} in the entry's configuration is not a name; expected one "
                "that 'smallbench recipes' or --help lists, or FILE.py:NAME without a folder"
            )
    return names


def word(value: object) -> str:
    """Return a value of the configuration as a flag has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(word, value))
    return value if isinstance(value, str) else json.dumps(value)
