"""Checks of what an entry says in public: its texts, its links and scores quoted from elsewhere."""

from __future__ import annotations

import math
import re
import unicodedata

from smallbench.glue.protocols import PROTOCOLS
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import Entry
from smallbench.leaderboard.finding import Found
from smallbench.leaderboard.text import JOINERS, MARKUP, show, texts

PILE = re.compile("M{5}|[Mc]{9}")
"""Combining marks on one letter, more than a script needs; `c` is a mark with a width of its own,
of which Burmese has several in a syllable."""
MARKS = {"Mn": "M", "Me": "M", "Mc": "c"}
CEILINGS = {
    "cola": 80.0, "sst2": 98.0, "mrpc": 95.0, "stsb": 95.0,
    "qqp": 94.0, "mnli": 93.0, "qnli": 98.0, "rte": 96.0,
}  # fmt: skip
"""Dev scores above which a quoted score is flagged: one to five points above those of the best
published models of any size (DeBERTa, 1.5B parameters)."""


def text_findings(entry: Entry) -> Found:
    """Find markup and piles of combining marks."""
    for place, text in texts(entry, ""):
        # Any text is valid in a command and its configuration; pages escape all of it.
        if not place.startswith("provenance.") and MARKUP.search(text):
            yield "flagged", f"{place} looks like markup: {show(text)}"
        categories = (unicodedata.category(c) for c in text if c not in JOINERS)
        if PILE.search("".join(MARKS.get(category, " ") for category in categories)):
            yield "flagged", f"{place} has too many combining marks on one letter"


def link_findings(entry: Entry) -> Found:
    """Find links that are not what their names say."""
    links = entry.links
    if links.huggingface and not links.huggingface_revision:
        yield "rejected", "links.huggingface needs huggingface_revision, 40 hexadecimal digits"
    hosts = {"wandb": "wandb.ai", "huggingface": "huggingface.co"}
    for name, host in hosts.items():
        found = (getattr(links, name) or f"https://{host}").split("/")[2].casefold()
        if found != host and not found.endswith(f".{host}"):
            yield "flagged", f"links.{name} points to {found}"


def quoted_findings(entry: Entry) -> Found:
    """Find quoted scores that no run can have, and an average that does not fit them."""
    reported = entry.reported
    assert reported is not None
    if not (entry.links.paper or entry.links.code):
        yield "rejected", "reported scores need links.paper or links.code, which contain them"
    averaged = PROTOCOLS[reported.protocol].tasks
    lowest = {name: 0.0 if TASKS[name].ranking_metric == "accuracy" else -100.0 for name in TASKS}
    low, high = (
        sum(reported.scores.get(name, limits[name]) for name in averaged) / len(averaged)
        for limits in (lowest, dict.fromkeys(TASKS, 100.0))
    )
    if not low - 0.01 <= reported.average <= high + 0.01:
        range_ = f"mean {low:.2f}" if low == high else f"mean, which is {low:.2f} to {high:.2f}"
        yield "rejected", f"average {reported.average} differs from the scores' {range_}"
    most = sum(CEILINGS[name] for name in averaged) / len(averaged)
    ceilings = {**CEILINGS, "average": most}
    for name, score in {**reported.scores, "average": reported.average}.items():
        if score > ceilings[name]:
            yield "flagged", f"{name} {score} is above {ceilings[name]:.1f}: no published model is"
    for name, score in reported.scores.items():
        if score < lowest[name]:
            yield "rejected", f"{name} {score} is negative, but it is an accuracy"
        elif TASKS[name].ranking_metric == "accuracy" and not _is_accuracy(name, score):
            num = TASKS[name].split("dev").num_rows
            yield "flagged", f"{name} {score} is not k/{num} for any k: no accuracy of a run"


def _is_accuracy(name: str, score: float) -> bool:
    """Whether `score` is 100 k/n, rounded or truncated behind its last digit as in the paper."""
    num, decimals = TASKS[name].split("dev").num_rows, f"{score:.6f}".rstrip("0").partition(".")[2]
    unit = 10.0 ** -len(decimals)
    most = math.floor((score + unit) / 100 * num - 1e-9)
    return 100 * most / num >= score - unit / 2 - 1e-9
