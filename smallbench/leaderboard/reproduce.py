"""Repeat an entry by commands made from its configuration, and compare the results.

A keeper of the board runs them on their own GPU. The result is an entry too, so both are compared
by their predictions. `verified` requires three values to agree within stated tolerances. The
configuration is a submitter's text: it decides what is computed, not what is written or executed.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallbench.config import digest, flatten
from smallbench.errors import DataError, UsageError
from smallbench.files import read_json, write_json, write_text
from smallbench.leaderboard.assemble import Author, write_new_entry
from smallbench.leaderboard.board import compare
from smallbench.leaderboard.configuration import names_of, require_plugins, word
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.evaluation import evaluate_each
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.folder import (
    Submission,
    parse_submission,
    read_files,
    read_submission,
)
from smallbench.leaderboard.gold import Gold
from smallbench.leaderboard.text import show
from smallbench.leaderboard.verdict import Evaluation
from smallbench.plugins import use_copies, write_copies

MAX_LOSS_DIFFERENCE = 0.05
"""Tolerance of the last logged loss: chosen, not measured."""
SECOND_PHASE = "then.sequence_length"


def commands_of(
    entry: Entry, *, run_dir: str = "runs/again", data: str | None = None,
    then_data: str | None = None, glue: str = "hub", results: str = "results/again",
    plugins: Sequence[str] = (),
) -> list[list[str]]:  # fmt: skip
    """Return the commands that make the entry: pretrain, export, glue.

    Every value of the configuration is a flag, so a changed default does not change the commands.
    `plugins` are the files of its plug-ins. Raises `DataError` for what is not configuration.
    """
    measured = entry.measured
    settings, names = flatten(measured.provenance.config), names_of(entry)
    settings.pop("recipe", None)
    flags = [f"--{key}={word(value)}" for key, value in sorted(settings.items())
             if value is not None]  # fmt: skip
    if settings.get(SECOND_PHASE) is not None:
        flags.append(f"--then_data={then_data or 'THEN_DATA'}")
    if plugins:
        flags.append(f"--plugin={','.join(plugins)}")
    data = data or measured.data.name
    export = f"{run_dir}/export"
    # The code in the export is that of the plug-ins.
    trust = ["--trust_remote_code=true"] if measured.provenance.plugins else []
    return [
        ["smallbench", "pretrain", names["recipe"], f"--data={data}", f"--run_dir={run_dir}",
         *flags],
        ["smallbench", "export", f"--run={run_dir}", f"--out={export}"],
        ["smallbench", "glue", f"--model={export}", f"--glue={glue}", f"--out={results}",
         f"--protocol={measured.finetune.protocol}", *trust],
    ]  # fmt: skip


class Repetition:
    """A repetition of an entry by its own commands, and the comparison."""

    def __init__(
        self, folder: Path, out: Path | None, *, data: str | None, then_data: str | None, glue: str
    ) -> None:
        """Raise `DataError` if the entry cannot be read, or has no configuration to repeat."""
        try:
            contents = read_files(folder)
            self._claimed = parse_submission(folder, contents)
        except Rejected as error:
            raise DataError(f"{folder} is rejected: {error.reason}") from None
        entry = self._claimed.entry
        if entry.provenance is None:
            raise DataError(f"{folder} is of tier {entry.tier} and has no configuration to repeat")
        length = flatten(entry.provenance.config).get(SECOND_PHASE)
        if length is None and then_data is not None:
            raise UsageError(f"{folder} has no second phase; leave --then_data out")
        if length is not None and then_data is None:
            raise UsageError(
                f"{folder} has a second phase with rows of {show(str(length))} tokens; set "
                "--then_data to its corpus"
            )
        self._place = Path(out or f"reproduced/{entry.slug}")
        self._plugins = _plugins_of(entry, contents)
        copies = [
            str(self._place / "plugins" / plugin["sha256"][:12] / plugin["name"])  # `write_copies`
            for plugin in self._plugins
            if plugin["name"].endswith(".py")
        ]
        self._commands = commands_of(
            entry, run_dir=str(self._place / "run"), results=str(self._place / "glue"),
            data=data, then_data=then_data, glue=glue, plugins=copies,
        )  # fmt: skip

    @property
    def script(self) -> str:
        """Return the commands, one a line."""
        return "\n".join(map(shlex.join, self._commands))

    def run(
        self, gold: Gold, *, cache: Path | None = None, run_plugins: bool = False
    ) -> tuple[str, bool]:
        """Run the commands; return the comparison, and whether everything agrees.

        Raises `DataError` at the first command that fails, and `UsageError` if the entry has code
        of its own and `run_plugins` is false.
        """
        self._begin(run_plugins)
        for command in self._commands:
            print(f"$ {shlex.join(command)}", flush=True)
            words = [sys.executable, "-m", "smallbench.jobs.cli", *command[1:]]
            code = subprocess.run(words, check=False).returncode
            if code:
                raise DataError(f"{command[1]} ended with exit code {code}; nothing was compared")
        slug = self._claimed.entry.slug
        again = self._place / "entry" / slug
        if not again.exists():
            day, run, glue = self._claimed.entry.date, self._place / "run", self._place / "glue"
            author = Author(None, ("keepers",), "CC0-1.0", day, contains_glue=False)
            write_new_entry(again, run_dir=run, glue=glue, author=author)
        pair = evaluate_each([self._claimed.folder, again], gold, cache=cache)
        found = list(_agreements((self._claimed, pair[0]), (read_submission(again), pair[1])))
        lines = [f"{'ok' if holds else 'DIFFERS':<8} {sentence}" for holds, sentence in found]
        agrees = all(holds for holds, _ in found)
        if agrees:
            lines.append(f"verified.json: {json.dumps({slug: pair[0].sha256})}")
        return "\n".join(lines), agrees

    def _begin(self, run_plugins: bool) -> None:
        """Mark the folder as this repetition's, and write the plug-ins to it.

        Raises an error for a folder with another run, and for code that may not be executed.
        """
        entry, place = self._claimed.entry.measured, self._place
        if self._plugins and not run_plugins:
            paths = [path for p in entry.provenance.plugins for path in p["files"].values()]
            raise UsageError(
                f"repeating {self._claimed.folder} executes the submitter's code in "
                f"{', '.join(sorted(paths))}; read it, then allow that with --run_plugins=true"
            )
        own = {
            "entry": self._claimed.entry.slug,
            "config_digest": digest(entry.provenance.config),
            "protocol": entry.finetune.protocol,
            "plugins": [plugin["sha256"] for plugin in self._plugins],
        }
        marker, parts = place / "repetition.json", ("run", "glue", "entry", "plugins")
        if any((place / part).exists() for part in parts) and not (
            marker.exists() and read_json(marker) == own
        ):
            raise DataError(
                f"{place} has a run that is not a repetition of {own['entry']} with its present "
                "configuration and plug-ins; choose another --out"
            )
        write_json(marker, own)
        write_copies(self._plugins, place / "plugins", write_text)
        packages = [plugin for plugin in self._plugins if not plugin["name"].endswith(".py")]
        use_copies(packages, place / "plugins")  # compares them with the installed ones


def _plugins_of(entry: Entry, contents: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the plug-ins with their texts, as a run's record has them."""
    require_plugins(entry)
    return [
        {**plugin, "files": {name: contents[at].decode() for name, at in plugin["files"].items()}}
        for plugin in entry.measured.provenance.plugins
    ]


def _agreements(
    claimed: tuple[Submission, Evaluation], repeated: tuple[Submission, Evaluation]
) -> Iterator[tuple[bool, str]]:
    """Yield whether each value agrees, and a sentence with both values and the tolerance."""
    a, b = (one.entry.model.num_parameters for one, _ in (claimed, repeated))
    yield a == b, f"parameters: {a:,} claimed, {b:,} repeated (equal)"
    first, again = (_last_loss(submission) for submission, _ in (claimed, repeated))
    yield (
        abs(first - again) <= MAX_LOSS_DIFFERENCE,  # False for NaN
        f"last loss: {first:.4f} claimed, {again:.4f} repeated ({MAX_LOSS_DIFFERENCE})",
    )
    views = [evaluation.views.get("robust") for _, evaluation in (claimed, repeated)]
    if views[0] is None or views[1] is None:
        yield False, "AVG: – claimed, – repeated (both ranked by the same protocol)"
        return
    for row in compare(views[0], views[1])[-1:]:
        sure = row.interval
        yield (
            row.name == "AVG" and sure.low <= 0 <= sure.high,
            f"{row.name}: {row.a:.2f} claimed, {row.b:.2f} repeated "
            f"(range of the difference {sure.low:+.2f} to {sure.high:+.2f} contains 0)",
        )


def _last_loss(submission: Submission) -> float:
    loss = submission.train_log[-1]["loss"] if submission.train_log else None
    return math.nan if loss is None else float(loss)
