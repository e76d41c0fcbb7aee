"""How an entry is tampered with, and the corpus of all cases."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from smallbench.config import digest
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import chained, predictions_bytes
from smallbench.leaderboard.predictions import parse_predictions
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made

SCALE = 0.1
TODAY = date(2025, 1, 10)
"""Day of the check; the good entry is of 2025-01-01."""
MIB = 1 << 20
CORPUS: dict[str, Case] = {}
BESIDE = {
    "damaged_file_that_ends_like_anothers",
    "log_of_another_run",
    "losses_of_another_run",
    "predictions_of_another_entry",
    "predictions_of_another_entry_packed_anew",
    "name_in_other_letters",
    "name_with_a_symbol_for_a_letter",
    "weights_of_another_entry",
}
"""Cases that take something from the other entry."""


@dataclass(frozen=True)
class Case:
    """`tamper` changes the folder of a good entry."""

    tamper: Callable[[Path], None]
    verdict: str
    check: str
    reason: str
    """Regular expression."""


def write_corpus(root: Path) -> None:
    """Every case as a folder `root/NAME/good`, some beside `root/NAME/original`."""
    gold = synthetic_gold(scale=SCALE)
    made = root.with_name(f"{root.name}-made")
    write_made(made, synthetic_entry("original", gold, seed=7))
    good = write_made(made, synthetic_entry("good", gold, seed=0))
    for name, case in CORPUS.items():
        shutil.copytree(good, root / name / "good", copy_function=shutil.copyfile)
        if name in BESIDE:
            shutil.copytree(made / "original", root / name / "original")
        case.tamper(root / name / "good")


def case(verdict: str, check: str, reason: str):
    """Register the decorated function as a case under its name."""

    def add(tamper):
        CORPUS[tamper.__name__] = Case(tamper, verdict, check, reason)
        return tamper

    return add


def edit(folder: Path, *path: str, to=None, remove: bool = False) -> None:
    """Set or remove a value of entry.json; `to` may be a function of the old one."""
    file = folder / "entry.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = to(place[path[-1]]) if callable(to) else to
    file.write_text(json.dumps(content))


def reconfigure(folder: Path, *path: str, to) -> None:
    """Change the configuration and every digest of it."""
    edit(folder, "provenance", "config", *path, to=to)
    content = json.loads((folder / "entry.json").read_text())
    edit(folder, "provenance", "config_digest", to=digest(content["provenance"]["config"]))
    relog(folder, lambda lines: lines)


def relog(folder: Path, change) -> None:
    """Rewrite the log and its links, as a careful forger would."""
    file = folder / "train_log.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    content = json.loads((folder / "entry.json").read_text())
    records = ({k: v for k, v in line.items() if k != "sha256"} for line in lines)
    lines = chained(records, config_digest=content["provenance"]["config_digest"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit(folder, "provenance", "train_log_sha256", to=lines[-1]["sha256"])


def changed_lines(change, lines):
    """The lines of a log, each with the values that `change` returns for it and its number."""
    return [{**line, **change(line, number)} for number, line in enumerate(lines)]


def rerun(folder: Path, change) -> None:
    """Rewrite the lines of runs.jsonl."""
    file = folder / "runs.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def prediction(folder: Path, task: str, number: int = 0, split: str = "dev") -> Path:
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    found = [x["predictions"] for x in lines if x["task"] == task and split in x["predictions"]]
    return folder / found[number][split]


def retext(path: Path, change) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def scaled(*path: str, by: float):
    """A tampering that multiplies a number of entry.json."""
    return lambda folder: edit(folder, *path, to=lambda value: type(value)(value * by))


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(1 << 16)


def copy_answers(source: Path, target: Path, task: str, change) -> None:
    """Write a file's answers, changed, to another file."""
    text = source.read_bytes()
    split = source.name.rpartition("_")[2].removesuffix(".tsv.gz")
    answers = change(parse_predictions(text, source.name, TASKS[task], split))
    target.write_bytes(predictions_bytes(TASKS[task], answers))


def chosen_files(folder: Path, task: str) -> list[Path]:
    """The files that chose a task's learning rate, the chosen one first."""
    rate = json.loads((folder / "entry.json").read_text())["finetune"]["chosen"][task]
    paths = [prediction(folder, task, number, "choice") for number in range(4)]
    return sorted(paths, key=lambda path: f"lr-{rate:g}_" not in path.name)
