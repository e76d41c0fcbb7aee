"""Generated stand-ins for the eight GLUE tasks, for trying the whole path without any data set.

They have GLUE's folders, files and labels, the columns that are read, and a few hundred rows of
template English that a small encoder can learn. They are NOT GLUE: the folder carries
`SAMPLE.json`, by which readers, results and tables know and say so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from smallbench import files
from smallbench.errors import DataError
from smallbench.glue.readers import SAMPLE_MARKER
from smallbench.glue.tasks import TASKS, Split, Task

NUM_ROWS = {"train": 400, "dev": 100, "test": 100}
"""Rows by the first word of a split's name."""

FORMAT = "smallbench-sample-glue-1"
SAMPLES = "samples"
"""What `--glue` calls them."""

_README = """# Generated samples, NOT GLUE

The folders here have the layout of the GLUE benchmark, but every sentence was generated from
templates by `smallbench.glue.samples`. Scores on them show that the programs run. They say nothing
about GLUE and must never be compared with scores on it.
"""

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

    Raises `DataError` where `directory` holds task folders that are not samples.
    """
    marker = directory / SAMPLE_MARKER
    for task in TASKS.values():
        if (directory / task.directory).exists() and not marker.is_file():
            raise DataError(
                f"{directory} has a folder {task.directory}/ and no {SAMPLE_MARKER}: it may be "
                f"real GLUE; choose another folder for the generated samples"
            )
    # Marker first: not even an unfinished folder can be taken for GLUE.
    note = "Generated samples in GLUE's layout. This is not GLUE."
    files.write_json(marker, {"format": FORMAT, "seed": seed, "is_glue": False, "note": note})
    files.write_text(directory / "README.md", _README)
    for task in TASKS.values():
        for split, examples in generate(task, seed=seed).items():
            place = task.split(split)
            rows = _file_rows(task, place, examples)
            text = "".join("\t".join(row) + "\n" for row in rows)
            files.write_text(directory / (place.folder or task.directory) / place.file, text)


def generate(task: Task, *, seed: int = 0) -> dict[str, list[Pair]]:
    """Split name to examples; no texts occur twice in a task, within or across splits.

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
    """A file's rows with the columns that are read, header first if there is one."""
    columns = ("index", *task.tsv_texts) if split.is_test else (*task.tsv_texts, task.tsv_label)
    rows = [list(columns)]
    if task.headerless and not split.is_test:
        columns, rows = task.headerless, []
    for number, (texts, label) in enumerate(examples):
        known = {"index": str(number), task.tsv_label: label}
        known |= dict(zip(task.tsv_texts, texts, strict=True))
        rows.append([known.get(name, "-") for name in columns])
    return rows


# ---- words

# Each group is one meaning in several words.
_PEOPLE = ("teacher", "doctor", "farmer", "singer", "pilot", "baker", "lawyer", "painter", "nurse")
_KINDS = {
    "animal": ("dog", "horse", "cat", "goat", "sparrow", "rabbit"),
    "vehicle": ("car", "truck", "bicycle", "bus", "tractor", "van"),
    "fruit": ("apple", "pear", "plum", "lemon", "peach", "melon"),
    "instrument": ("piano", "violin", "guitar", "flute", "drum", "trumpet"),
}
_THINGS = tuple(thing for things in _KINDS.values() for thing in things)
_KIND_OF = {thing: kind for kind, things in _KINDS.items() for thing in things}
_DEEDS = (
    ("bought", "purchased"),
    ("sold", "traded away"),
    ("found", "discovered"),
    ("hid", "concealed"),
    ("washed", "cleaned"),
    ("photographed", "took a picture of"),
)
_PLACES = ("village", "market", "harbour", "garden", "station", "forest", "museum", "valley")
_COLOURS = ("red", "white", "old", "small", "heavy", "black", "young", "cheap")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + " " + end


# ---- tasks: one function draws one example


def _cola(random: Random) -> Pair:
    """Agreement, word order or a missing verb; half of the sentences are sound."""
    plural = random.random() < 0.5
    subject, thing = random.choice(_PEOPLE), random.choice(_THINGS)
    colour, place = random.choice(_COLOURS), random.choice(_PLACES)
    verb = random.choice(("see", "like", "want", "need", "own", "carry", "miss", "paint"))
    singular = {"carry": "carries", "miss": "misses"}.get(verb, verb + "s")
    noun, verb_form = (subject + "s", verb) if plural else (subject, singular)
    words = ["the", noun, verb_form, "the", colour, thing, "near", "the", place]
    if random.random() < 0.5:
        return (_sentence(" ".join(words)),), "1"
    error = random.choice(("agreement", "order", "order", "verb"))
    if error == "agreement":
        words[2] = singular if plural else verb
    elif error == "order":
        cut = random.choice((0, 3, 7))
        words[cut], words[cut + 1] = words[cut + 1], words[cut]
    else:
        del words[2]
    return (_sentence(" ".join(words)),), "0"


_GOOD = ("wonderful", "funny", "moving", "clever", "charming", "brilliant", "fresh", "delightful")
_BAD = ("dull", "boring", "stupid", "clumsy", "tedious", "awful", "lifeless", "annoying")


def _sst2(random: Random) -> Pair:
    """A judgement of a film; one in four is negated and means the opposite."""
    positive, negated = random.random() < 0.5, random.random() < 0.25
    words = _GOOD if positive != negated else _BAD
    first, second = random.sample(words, 2)
    part = random.choice(("plot", "film", "acting", "story", "music", "script", "ending", "cast"))
    degree = random.choice(("very", "truly", "rather", "really", "simply"))
    if negated:
        text = random.choice((f"the {part} is not {first} at all", f"this {part} is never {first}"))
        text += f" , {degree} not {second} ."
    else:
        text = random.choice((f"the {part} is {degree} {first}", f"{_a(first)} {part}"))
        text += f" and {random.choice(('always', 'often', degree))} {second} ."
    return (text,), str(int(positive))


def _event(random: Random) -> dict[str, str]:
    deed = random.choice(_DEEDS)
    return {
        "who": random.choice(_PEOPLE),
        "deed": deed[0],
        "same_deed": deed[1],
        "colour": random.choice(_COLOURS),
        "what": random.choice(_THINGS),
        "where": random.choice(_PLACES),
        "when": random.choice(_DAYS),
    }


def _changed(random: Random, event: dict[str, str], slots: list[str]) -> dict[str, str]:
    """The event with another value in each of the slots."""
    other = dict(event)
    for slot in slots:
        while other[slot] == event[slot]:
            fresh = _event(random)
            other[slot] = fresh[slot]
            if slot == "deed":
                other["same_deed"] = fresh["same_deed"]
    return other


def _report(e: dict[str, str]) -> str:
    return _sentence(
        f"the {e['who']} {e['deed']} {_a(e['colour'])} {e['what']} in the {e['where']} "
        f"on {e['when']}"
    )


def _retold(e: dict[str, str]) -> str:
    return _sentence(
        f"on {e['when']} , in the {e['where']} , the {e['who']} {e['same_deed']} "
        f"{_a(e['colour'])} {e['what']}"
    )


def _mrpc(random: Random) -> Pair:
    """A report and its retelling in other words, or a retelling of something else."""
    event = _event(random)
    equivalent = random.random() < 0.6
    if equivalent:
        return (_report(event), _retold(event)), "1"
    slots = random.sample(["who", "deed", "what", "where", "when"], 3)
    return (_report(event), _retold(_changed(random, event, slots))), "0"


def _stsb(random: Random) -> Pair:
    """The score is the number of five slots that agree, give or take a fifth."""
    event = _event(random)
    slots = ["who", "deed", "what", "where", "when"]
    num_equal = random.randrange(6)
    other = _changed(random, event, random.sample(slots, 5 - num_equal))
    retell = random.choice((_report, _retold))
    score = min(5.0, max(0.0, num_equal + random.uniform(-0.2, 0.2)))
    return (_report(event), retell(other)), f"{score:.3f}"


_WISHES = (
    ("learn to play", "start playing"),
    ("repair", "fix"),
    ("sell", "find a buyer for"),
    ("choose", "pick"),
    ("draw", "sketch"),
    ("clean", "wash"),
)


def _qqp(random: Random) -> Pair:
    """Two questions about the same deed and thing in other words, or about another."""
    wish, other = random.sample(_WISHES, 2)
    thing, other_thing = random.sample(_THINGS, 2)
    colour, place = random.choice(_COLOURS), random.choice(_PLACES)
    duplicate = random.random() < 0.5
    first = f"how do i {wish[0]} {_a(colour)} {thing} in a {place}"
    if not duplicate:
        wish, thing = random.choice(((other, other_thing), (wish, other_thing)))
    start = random.choice(("what is the best way to", "how can i", "how should one"))
    second = f"{start} {wish[1]} {_a(colour)} {thing} in a {place}"
    return (_sentence(first, "?"), _sentence(second, "?")), str(int(duplicate))


def _count_scene(random: Random) -> tuple[str, str, str, str, str]:
    number, other_number = random.sample(_NUMBERS, 2)
    thing = random.choice(_THINGS)
    return number, other_number, thing, random.choice(_PEOPLE), random.choice(_PLACES)


def _plural(noun: str) -> str:
    if noun.endswith(("ch", "s")):
        return noun + "es"
    return noun + "s"


def _mnli(random: Random) -> Pair:
    """A hypernym follows; an unmentioned detail may or may not; another number contradicts."""
    number, other_number, thing, who, place = _count_scene(random)
    colour = random.choice(_COLOURS)
    premise = f"the {who} has {number} {colour} {_plural(thing)} near the {place}"
    label = random.choice(("entailment", "neutral", "contradiction"))
    if label == "entailment":
        hypothesis = random.choice(
            (
                f"the {who} has some {_plural(_KIND_OF[thing])}",
                f"there are {_plural(_KIND_OF[thing])} near the {place}",
                f"the {who} has {number} {_plural(thing)}",
            )
        )
    elif label == "neutral":
        day, giver = random.choice(_DAYS), random.choice(_PEOPLE)
        hypothesis = random.choice(
            (
                f"the {who} got the {_plural(thing)} on {day}",
                f"the {_plural(thing)} were a present from {_a(giver)}",
                f"the {who} will sell the {_plural(thing)} on {day}",
            )
        )
    else:
        hypothesis = random.choice(
            (
                f"the {who} does not have any {_plural(thing)}",
                f"there are no {_plural(_KIND_OF[thing])} near the {place}",
                f"the {who} has only {other_number} {_plural(thing)}",
            )
        )
    return (_sentence(premise), _sentence(hypothesis)), label


def _rte(random: Random) -> Pair:
    """Dropped details and hypernyms follow; a negation or another actor does not."""
    e = _event(random)
    premise = _report(e)
    if random.random() < 0.5:
        hypothesis = random.choice(
            (
                f"the {e['who']} {e['same_deed']} {_a(_KIND_OF[e['what']])}",
                f"the {e['who']} {e['deed']} {_a(e['what'])}",
                f"the {e['who']} was in the {e['where']} on {e['when']}",
            )
        )
        return (premise, _sentence(hypothesis)), "entailment"
    other = _changed(random, e, ["who", "what", "where"])
    hypothesis = random.choice(
        (
            f"the {e['who']} never {e['same_deed']} {_a(_KIND_OF[e['what']])}",
            f"nobody {e['deed']} {_a(e['what'])}",
            f"the {other['who']} was not in the {e['where']}",
            f"the {other['who']} {e['deed']} the {other['what']} in the {other['where']}",
        )
    )
    return (premise, _sentence(hypothesis)), "not_entailment"


def _qnli(random: Random) -> Pair:
    """A question about when, where or what; the sentence has the answer, or another fact."""
    who, deed = random.choice(_PEOPLE), random.choice(_DEEDS)[0]
    colour, thing = random.choice(_COLOURS), random.choice(_THINGS)
    place, year = random.choice(_PLACES), str(random.randrange(1900, 2000))
    facts = {
        "when": f"the {who} {deed} it in the year {year}",
        "where": f"the {who} {deed} it inside the {place}",
        "what": f"the {who} {deed} {_a(colour)} {thing}",
    }
    asked = random.choice(tuple(facts))
    question = {
        "when": f"when did the {colour} {who} do the work",
        "where": f"where did the {colour} {who} do the work",
        "what": f"what was it that the {colour} {who} worked with",
    }[asked]
    answered = random.random() < 0.5
    told = asked if answered else random.choice([fact for fact in facts if fact != asked])
    label = "entailment" if answered else "not_entailment"
    return (_sentence(question, "?"), _sentence(facts[told])), label


_GENERATORS: dict[str, Callable[[Random], Pair]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
}
