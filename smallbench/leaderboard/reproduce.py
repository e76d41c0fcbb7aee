"""Repeat an entry by commands made from its configuration, and compare the results.

A keeper of the board runs them on their own GPU. The result is an entry too, so both are compared
by their predictions. `verified` requires three values to agree within stated tolerances.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from smallbench.config import flatten
from smallbench.errors import DataError
from smallbench.leaderboard.assemble import Author, write_new_entry
from smallbench.leaderboard.board import compare
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.evaluation import evaluate_each
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.folder import Submission, read_submission
from smallbench.leaderboard.gold import Gold
from smallbench.leaderboard.verdict import Evaluation

MAX_LOSS_DIFFERENCE = 0.05
"""Tolerance of the last logged loss: chosen, not measured."""


def commands_of(entry: Entry, *, run_dir: str = "runs/again", data: str | None = None,
                glue: str = "hub", results: str = "results/again") -> list[list[str]]:  # fmt: skip
    """Return the commands that make the entry: pretrain, export, glue.

    Every value of the configuration is a flag, so a changed default does not change the commands.
    """
    measured = entry.measured
    settings = flatten(measured.provenance.config)
    recipe = str(settings.pop("recipe", measured.model.architecture))
    flags = [f"--{key}={_word(value)}" for key, value in sorted(settings.items())
             if value is not None]  # fmt: skip
    data = data or measured.data.name
    export = f"{run_dir}/export"
    return [
        ["smallbench", "pretrain", recipe, f"--data={data}", f"--run_dir={run_dir}", *flags],
        ["smallbench", "export", f"--run={run_dir}", f"--out={export}"],
        ["smallbench", "glue", f"--model={export}", f"--glue={glue}", f"--out={results}",
         f"--protocol={measured.finetune.protocol}"],
    ]  # fmt: skip


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return value if isinstance(value, str) else json.dumps(value)


class Repetition:
    """A repetition of an entry by its own commands, and the comparison."""

    def __init__(self, folder: Path, out: str | None, *, data: str | None, glue: str) -> None:
        """Raise `DataError` if the entry cannot be read, or has no configuration to repeat."""
        try:
            self._claimed = read_submission(folder)
        except Rejected as error:
            raise DataError(f"{folder} is rejected: {error.reason}") from None
        entry = self._claimed.entry
        if entry.provenance is None:
            raise DataError(f"{folder} is of tier {entry.tier} and has no configuration to repeat")
        self._place = Path(out or f"reproduced/{entry.slug}")
        self._commands = commands_of(
            entry, run_dir=str(self._place / "run"), results=str(self._place / "glue"),
            data=data, glue=glue,
        )  # fmt: skip

    @property
    def script(self) -> str:
        """Return the commands, one a line."""
        return "\n".join(map(shlex.join, self._commands))

    def run(self, gold: Gold, *, cache: Path | None = None) -> tuple[str, bool]:
        """Run the commands; return the comparison, and whether everything agrees.

        Raises `DataError` at the first command that fails.
        """
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
