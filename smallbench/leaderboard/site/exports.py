"""The board for programs: JSON, CSV, LaTeX and an Atom feed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.board import Board, BoardName
from smallbench.leaderboard.site.rows import Row
from smallbench.templates import from_template

SCHEMA_VERSION = 1
NUM_FEED_ENTRIES = 50

Views = Mapping[BoardName, Sequence[Row]]


def json_text(views: Views, rejected: Sequence[str]) -> str:
    """Return `leaderboard.json`: every row of each view, in order."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "note": "The views are rankings by themselves and are never merged; scores are x 100.",
        "views": {name: [row.values for row in rows] for name, rows in views.items()},
        "rejected": list(rejected),
    }
    # Without `indent`, which would leave the encoder that is written in C.
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(views: Views) -> str:
    """Return `leaderboard.csv`: the same, a line for each row of each view."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")  # RFC 4180
    scores = [column for name in TASKS for column in (name, f"{name}_low", f"{name}_high")]
    measures = ("parameters", "tokens", "gpu", "gpu_hours", "usd", "kwh", "kg_co2")
    about = ("view", "slug", "name", "tier", "date", "rank_best", "rank_worst")
    average = ("average", "average_low", "average_high")
    claims = ("trials", "declared_trials", "flags", "tracks")
    writer.writerow([*about, *average, *scores, *measures, *claims])
    no_score = {"score": None, "interval": None}
    for view, row in ((view, row) for view, rows in views.items() for row in rows):
        values = row.values
        cells = [view, *(values[key] for key in about[1:5]), *(values["rank"] or (None, None))]
        cells += [values["average"], *(values["interval"] or (None, None))]
        for task in (values["tasks"].get(name, no_score) for name in TASKS):
            cells += [task["score"], *(task["interval"] or (None, None))]
        cells += [values[key] for key in (*measures, *claims)]
        words = ["; ".join(cell) if isinstance(cell, list) else cell for cell in cells]
        writer.writerow(map(_inert, words))
    return stream.getvalue()


FORMULA = re.compile(r"""(^|[;\t])(?=[\s"]*[=+\-@＝＋－＠﹦﹢﹣﹫])""")
"""The begin of a formula; in many languages, a spreadsheet separates cells by semicolons."""


def _inert(value: Any) -> Any:
    """Return text that a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    return FORMULA.sub(r"\1'", value) if isinstance(value, str) else value


def latex_text(rows: Sequence[Row], tab: Board) -> str:
    """Return a board as a LaTeX table (booktabs): ranks, AVG with its interval, tasks."""
    newest = max((row.entry.date for row in rows), default="none")
    return from_template(__package__, "board.tex", rows=rows, tab=tab, newest=newest, latex=_latex)


def _latex(text: str) -> str:
    r"""Return untrusted text without LaTeX's own characters (`\input` would read a file)."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {mark: f"\\{mark}" for mark in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def atom_text(views: Views, *, site_url: str) -> str:
    """Return `feed.xml` (RFC 4287): the newest entries of all boards, each once."""
    found = {row.slug: row for rows in [*views.values()][::-1] for row in rows}
    newest = sorted(found.values(), key=lambda row: (row.entry.date, row.slug), reverse=True)
    text = from_template(__package__, "feed.xml", rows=newest[:NUM_FEED_ENTRIES], site_url=site_url)
    ET.fromstring(text)  # noqa: S314 - ours: one character that XML forbids would break it for all
    return text
