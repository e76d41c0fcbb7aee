"""No file makes a reader crash: each failure is a sentence, and memory stays bounded.

Hypothesis damages good files: bytes are changed, cut and repeated, values of JSON replaced. Each
reader is tried on `EXAMPLES` of them by default and on `MANY` with `-m exhaustive`.
"""

import gzip
import io
import json
import os
import resource
import tarfile
from contextlib import suppress

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallbench.config import from_dict, override_all, to_dict
from smallbench.data.corpus import open_corpus
from smallbench.errors import SmallbenchError
from smallbench.glue.results import RESULT_FILE, read_predictions, read_run
from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import read_tsv
from smallbench.glue.tasks import TASKS
from smallbench.jobs.cli import load, resolve
from smallbench.leaderboard.entry import ENTRY_FILE, LOG_FILE, RUNS_FILE
from smallbench.leaderboard.finding import Rejected
from smallbench.leaderboard.folder import parse_submission, read_files
from smallbench.recipes import RECIPES
from tests.glue.runs import run_of
from tests.glue.test_results import write
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made

EXAMPLES, MANY = 40, 5_000
MAX_GROWTH_BYTES = 256 << 20

ODD = st.sampled_from(["", "nan", "../x", "1e999", "\ud800", "\0", "a" * 999])
NUMBERS = st.integers() | st.integers(10**18, 10**40) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | ODD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
PIECES = st.binary(max_size=12) | st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"[" * 2000, b"9" * 400]
)


@st.composite
def damaged(draw, content):
    """`content` with up to four places cut, replaced or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 8, 10**9])))
        piece = draw(PIECES) * draw(st.sampled_from([0, 1, 1, 50]))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def altered(draw, value):
    """`value` of JSON with one part replaced, removed or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.integers(0, 9))
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return value | {draw(st.text(max_size=8)): draw(VALUES)}
        return value | {key: draw(altered(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(altered(value[place])), *value[place + 1 :]]
    return draw(VALUES)


def fuzz(check, strategy, num_examples):
    """Run `check` on examples of `strategy`; the process may not grow beyond the limit."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def run(example):
        check(example)

    run()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MAX_GROWTH_BYTES


# ---- what is fuzzed: a function from (a folder, the sample GLUE) to (check, strategy)


def entries(folder, glue):
    made = write_made(folder, synthetic_entry("good", synthetic_gold(scale=0.005), seed=0))
    good = read_files(made)
    predictions = [name for name in sorted(good) if name.endswith(".gz")]
    names = [ENTRY_FILE, RUNS_FILE, LOG_FILE, *predictions[:2]]
    parse_submission(made, good)
    entry = json.loads(good[ENTRY_FILE])
    runs = good[RUNS_FILE].splitlines()

    def with_file(name):
        unpacked = gzip.decompress(good[name]) if name.endswith(".gz") else good[name]
        repacked = damaged(unpacked).map(gzip.compress) if name.endswith(".gz") else st.nothing()
        return (damaged(good[name]) | repacked).map(lambda content: {name: content})

    def dumped(value):
        return json.dumps(value).encode()

    strategy = (
        st.sampled_from(names).flatmap(with_file)
        | altered(entry).map(lambda value: {ENTRY_FILE: dumped(value)})
        | altered(json.loads(runs[0])).map(
            lambda value: {RUNS_FILE: b"\n".join([dumped(value), *runs[1:], b""])}
        )
    )

    def check(changes):
        with suppress(Rejected):
            parse_submission(made, good | changes)

    return check, strategy


def tables(folder, glue):
    places = [(task, split) for task in TASKS.values() for split in task.splits]

    def of(place):
        task, split = place
        content = (glue / (split.folder or task.directory) / split.file).read_bytes()
        return damaged(content[:4000]).map(lambda content: (task, split, content))

    def check(example):
        task, split, content = example
        path = folder / split.file
        path.write_bytes(content)
        with suppress(SmallbenchError):
            assert len(read_tsv(task, split, path))

    return check, st.sampled_from(places).flatmap(of)


def results(folder, glue):
    directory = write(folder, run_of())
    path = directory / RESULT_FILE
    content = path.read_bytes()
    as_bytes = altered(json.loads(content)).map(lambda value: json.dumps(value).encode())

    def check(example):
        path.write_bytes(example)
        with suppress(SmallbenchError):
            read_run(directory)
        (directory / "dev.tsv").write_bytes(example)
        with suppress(SmallbenchError):
            read_predictions(directory, TASKS["cola"], "dev")

    return check, damaged(content) | as_bytes | damaged(b"index\tprediction\n0\tacceptable\n")


def configurations(folder, glue):
    bert = RECIPES["bert-small"]()
    data, keys = (
        to_dict(bert),
        ["model.hidden_size", "train.milestones", "optim.learning_rate", "x.y"],
    )
    overrides = st.dictionaries(st.sampled_from(keys) | st.text(max_size=9), VALUES, max_size=3)

    def check(example):
        changes, whole = example
        with suppress(SmallbenchError):
            override_all(bert, changes)
        if isinstance(whole, dict):
            with suppress(SmallbenchError):
                from_dict(type(bert), whole)

    return check, st.tuples(overrides, altered(data))


def yaml_files(folder, glue):
    path = folder / "config.yaml"
    content = yaml.safe_dump({"train": {"max_steps": 5}, "optim.learning_rate": 1e-3}).encode()
    arguments = ["bert-small", "--data=a", "--run_dir=b", f"--config={path}"]
    job = load("pretrain")

    def check(example):
        path.write_bytes(example)
        with suppress(SmallbenchError):
            resolve(job, arguments, {})

    return check, damaged(content) | altered(yaml.safe_load(content)).map(
        lambda value: json.dumps(value).encode()
    )


def archives(folder, glue):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in [("a.txt", b"one two\n\nthree\n"), ("b.jsonl", b'{"text": "x"}\n')]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    plain = buffer.getvalue()
    files = {"a.tar": plain, "a.tar.gz": gzip.compress(plain), "a.jsonl": b'{"text": "x"}\n{}\n',
             "a.txt.gz": gzip.compress(b"one\n\ntwo\n")}  # fmt: skip

    def of(name):
        return damaged(files[name]).map(lambda content: (name, content))

    def check(example):
        name, content = example
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(content)
        with suppress(SmallbenchError):
            for _ in open_corpus(str(folder)).documents():
                pass

    return check, st.sampled_from(sorted(files)).flatmap(of)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    write_sample_glue(folder)
    return folder


READERS = (entries, tables, results, configurations, yaml_files, archives)


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_refused_with_one_sentence(reader, glue, tmp_path):
    fuzz(*reader(tmp_path, glue), EXAMPLES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files_are_sentences_and_no_crash(reader, glue, tmp_path):
    fuzz(*reader(tmp_path, glue), int(os.environ.get("SMALLBENCH_TEST_EXAMPLES", MANY)))
