"""Generated sample tasks in GLUE's format, to try every stage without a data set.

They have GLUE's folders, files and labels, the columns that are read, and a few hundred rows of
template English that a small encoder can learn. They are NOT GLUE: readers, results and tables
recognise the folder by its `SAMPLE.json` and say so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from smallbench import files
from smallbench.errors import DataError
from smallbench.glue.task_data import SAMPLE_MARKER
from smallbench.glue.tasks import TASKS, Split, Task
from smallbench.templates import from_template

NUM_ROWS = {"train": 400, "dev": 100, "test": 100}
"""Number of rows by the first word of a split's name."""

FORMAT = "smallbench-sample-glue-1"
SAMPLES = "samples"
"""Value of `--glue` for the samples."""

Pair = tuple[tuple[str, ...], str]
"""The texts of an example, and its label as the files spell it."""


@contextmanager
def glue_source(source: str) -> Iterator[str]:
    """Yield `source`, or generated samples for the word `samples` if no folder has that name."""
    if source != SAMPLES or Path(source).is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="smallbench-samples-") as temporary:
        write_sample_glue(Path(temporary))
        yield temporary


def write_sample_glue(directory: Path, *, seed: int = 0) -> None:
    """Write all eight sample tasks below `directory`; the same seed gives the same bytes.

    Raises `DataError` if `directory` holds task folders that are not samples.
    """
    marker = directory / SAMPLE_MARKER
    for task in TASKS.values():
        if (directory / task.directory).exists() and not marker.is_file():
            raise DataError(
                f"{directory} has a folder {task.directory}/ but {SAMPLE_MARKER} is missing, so "
                "it may be real GLUE; choose another folder for the generated samples"
            )
    # Marker first, so that an unfinished folder cannot be taken for GLUE.
    note = "Generated samples in GLUE's layout. This is not GLUE."
    files.write_json(marker, {"format": FORMAT, "seed": seed, "is_glue": False, "note": note})
    files.write_text(directory / "README.md", from_template("smallbench.glue", "samples.md"))
    for task in TASKS.values():
        for split, examples in generate(task, seed=seed).items():
            place = task.split(split)
            rows = _file_rows(task, place, examples)
            text = "".join("\t".join(row) + "\n" for row in rows)
            files.write_text(directory / (place.folder or task.directory) / place.file, text)


def generate(task: Task, *, seed: int = 0) -> dict[str, list[Pair]]:
    """Return split name → examples; no text occurs twice in a task, within or across splits.

    MNLI's mismatched and diagnostic splits are drawn like its matched ones.
    """
    random = Random(f"{task.name} {seed}")  # noqa: S311 - sentences, not secrets
    generator, used = _GENERATORS[task.name], set()
    splits: dict[str, list[Pair]] = {}
    for split in task.splits:
        rows = splits[split.name] = []
        while len(rows) < NUM_ROWS[split.name.partition("_")[0]]:
            texts, label = generator(random)
            if texts not in used:
                used.add(texts)
                rows.append((texts, label))
    return splits


def _file_rows(task: Task, split: Split, examples: list[Pair]) -> list[list[str]]:
    columns = ("index", *task.tsv_texts) if split.is_test else (*task.tsv_texts, task.tsv_label)
    rows = [list(columns)]
    if task.headerless and not split.is_test:
        columns, rows = task.headerless, []
    for number, (texts, label) in enumerate(examples):
        known = {"index": str(number), task.tsv_label: label}
        known |= dict(zip(task.tsv_texts, texts, strict=True))
        rows.append([known.get(name, "-") for name in columns])
    return rows


# ---- words that are frequent in Python's documentation, the corpus of the quickstart

_ACTORS = ("function", "method", "class", "module", "parser", "server", "client", "thread", "test")
_THINGS = ("list", "string", "file", "path", "number", "value", "name", "line", "message", "key")
_DEEDS = ("returns", "creates", "removes", "reads", "writes", "checks", "changes", "uses")
_QUALITIES = ("new", "empty", "first", "last", "current", "default", "given", "short")
_PLACES = ("module", "package", "directory", "table", "database", "library", "document", "system")
_GOOD = ("fast", "simple", "clear", "useful", "safe", "easy", "correct", "complete")
_BAD = ("slow", "wrong", "broken", "missing", "invalid", "unused", "unsafe", "incomplete")
_DEGREES = ("never", "rarely", "sometimes", "often", "usually", "always")
_DENIED = ("does not have", "has no", "never has")


def _event(random: Random) -> dict[str, str]:
    return {
        "who": random.choice(_ACTORS),
        "deed": random.choice(_DEEDS),
        "kind": random.choice(_QUALITIES),
        "what": random.choice(_THINGS),
        "where": random.choice(_PLACES),
    }


def _sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + " " + end


def _report(e: dict[str, str]) -> str:
    return _sentence(f"the {e['who']} {e['deed']} the {e['kind']} {e['what']} in the {e['where']}")


# ---- tasks: one function draws one example. A label depends on single words or on word order, so
# that a tiny model learns it from some hundred rows; it cannot compare two sentences word by word.


def _cola(random: Random) -> Pair:
    words = _report(_event(random)).split()
    if random.random() < 0.5:
        return (" ".join(words),), "1"
    middle = words[1:-1]
    while middle == words[1:-1]:
        random.shuffle(middle)
    return (" ".join([words[0], *middle, words[-1]]),), "0"


def _sst2(random: Random) -> Pair:
    positive = random.random() < 0.5
    first, second = random.sample(_GOOD if positive else _BAD, 2)
    subject = f"the {random.choice(_QUALITIES)} {random.choice((*_ACTORS, *_THINGS))}"
    where = random.choice(_PLACES)
    return (_sentence(f"{subject} in the {where} is {first} and {second}"),), str(int(positive))


def _stsb(random: Random) -> Pair:
    """Return a report and how often it holds: the more often, the more similar."""
    e = _event(random)
    degree = random.randrange(6)
    retold = f"the {e['who']} {_DEGREES[degree]} {e['deed']} the {e['kind']} {e['what']}"
    score = min(5.0, max(0.0, degree + random.uniform(-0.2, 0.2)))
    return (_report(e), _sentence(retold)), f"{score:.3f}"


def _mnli(random: Random) -> Pair:
    """Return a statement and what follows from it, what may follow, or its denial."""
    e = _event(random)
    label = random.choice(("entailment", "neutral", "contradiction"))
    verb = {
        "entailment": random.choice(("has", "really has")),
        "neutral": random.choice(("may later lose", "perhaps wants")),
        "contradiction": random.choice(_DENIED),
    }[label]
    premise = f"the {e['who']} has the {e['kind']} {e['what']} in the {e['where']}"
    return (_sentence(premise), _sentence(f"the {e['who']} {verb} the {e['what']}")), label


def _qnli(random: Random) -> Pair:
    """Return a question and a sentence that answers it, or says that it is not known."""
    e = _event(random)
    answered = random.random() < 0.5
    question = f"what {e['deed']} the {e['kind']} {e['what']} in the {e['where']}"
    told = f"the {e['who']} does" if answered else "nobody knows"
    label = "entailment" if answered else "not_entailment"
    return (_sentence(question, "?"), _sentence(told)), label


_REPORT = "the {who} {deed} the {kind} {what} in the {where}."

# Task → the chance of the first label, the first text, and for each label how the second may read.
_PAIRS: dict[str, tuple[float, str, dict[str, tuple[str, str]]]] = {
    "mrpc": (
        0.6,
        _REPORT,
        {
            "1": ("it really {deed} the {what}.", "it always {deed} the {what}."),
            "0": ("it never {deed} the {what}.", "it no longer {deed} the {what}."),
        },
    ),
    "qqp": (
        0.5,
        "how do i use the {kind} {what} in the {where}?",
        {
            "1": ("how can it be used?", "how to use it?"),
            "0": ("who never uses it?", "who removes it?"),
        },
    ),
    "rte": (
        0.5,
        _REPORT,
        {
            "entailment": ("the {who} {deed} the {what}.", "a {what} is there."),
            "not_entailment": ("the {who} does nothing.", "there is no {what}."),
        },
    ),
}


def _pair(task: str, random: Random) -> Pair:
    chance, first, seconds = _PAIRS[task]
    e = _event(random)
    label = [*seconds][random.random() >= chance]
    texts = (first, random.choice(seconds[label]))
    return tuple(_sentence(text[:-1].format(**e), text[-1]) for text in texts), label


_GENERATORS: dict[str, Callable[[Random], Pair]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": partial(_pair, "mrpc"),
    "stsb": _stsb,
    "qqp": partial(_pair, "qqp"),
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": partial(_pair, "rte"),
}
