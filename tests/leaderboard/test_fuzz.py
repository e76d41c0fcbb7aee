"""Whatever is in a folder, it is refused by name or shown: nothing ends a build.

A case takes a good entry, changes one to four things in it, and asks `validate` and `build`.
"""

import gzip
import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smallbench.leaderboard.entry import chained
from smallbench.leaderboard.evaluation import _together, evaluate
from smallbench.leaderboard.gold import Gold
from smallbench.leaderboard.site.build import build_site
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made
from tests.leaderboard.tampered.tiers import as_reference

GOLD = synthetic_gold(scale=0.02)
NUM_CASES, NUM_SLOW_CASES = min(60, settings.default.max_examples), 3_000

NUMBERS = st.one_of(
    st.sampled_from(
        [
            0,
            -0.0,
            -1,
            1,
            1e-300,
            5e-324,
            1e-30,
            1e30,
            1.79e308,
            -1.79e308,
            2**53,
            2**63,
            2**64 - 1,
            10**15,
            10**400,
            1e15,
            0.1,
        ]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
STRANGE = "\uffff\ufffe\ufdd0\x00\x7f\u202e\u200b\u2028\ud800\U0001f600<>&'\"=@+-|`\\\n\t\r%{}е1l"
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=STRANGE, min_size=1, max_size=12),
    st.sampled_from(["</script><script>", "{{ 7 * 7 }}", "=1+1", "javascript:alert(1)", "é" * 200]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Every place of a JSON value."""
    if path:
        yield path
    if not isinstance(value, dict | list):
        return
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(member, (*path, key))


def put(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    found = [
        write_made(root, synthetic_entry("good", GOLD, seed=0)),
        shutil.copytree("submissions/reported-bert", root / "reported-bert"),
        write_made(root, synthetic_entry("random", GOLD, seed=0, track="tiny")),
    ]
    as_reference(found[-1])
    return found


def dumped(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def change_entry(folder, data):
    """A value anywhere in entry.json, with the log signed anew."""
    file = folder / "entry.json"
    try:
        content = json.loads(file.read_bytes())
    except ValueError:  # after a change of its bytes
        return
    path = data.draw(st.sampled_from(list(places(content))))
    put(content, path, data.draw(VALUES))
    file.write_bytes(dumped(content))


def change_log(folder, data):
    """A number of the log, chained as a careful forger would."""
    log, file = folder / "train_log.jsonl", folder / "entry.json"
    if not log.exists():
        return
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    keys = ["step", "tokens", "seconds", "loss", "mlm_loss", "tokens_per_second"]
    key = data.draw(st.sampled_from(keys))
    value = data.draw(st.one_of(NUMBERS, st.none()))
    first = data.draw(st.integers(0, len(lines) - 1))
    for line in lines[first : first + data.draw(st.sampled_from([1, 3, len(lines)]))]:
        line[key] = value
    try:
        content = json.loads(file.read_bytes())
        digest = content["provenance"]["config_digest"]
        signed = chained(({k: v for k, v in x.items() if k != "sha256"} for x in lines),
                         config_digest=digest)  # fmt: skip
        content["provenance"]["train_log_sha256"] = signed[-1]["sha256"]
    except (KeyError, TypeError, ValueError):
        return
    log.write_bytes(b"".join(dumped(line) + b"\n" for line in signed))
    file.write_bytes(dumped(content))


def change_answers(folder, data):
    """The lines of a predictions file."""
    files = sorted(folder.glob("predictions/*"))
    if not files:
        return
    file = data.draw(st.sampled_from(files))
    lines = gzip.decompress(file.read_bytes()).split(b"\n")
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(st.binary(max_size=12) | st.sampled_from([lines[1], b"0\t1e308"]))
    file.write_bytes(gzip.compress(b"\n".join(lines), mtime=0))


def change_bytes(folder, data):
    """Bytes of any file."""
    file = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, max(0, len(content) - 1)))
    content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    file.write_bytes(content)


def add_file(folder, data):
    """Add a file with an unexpected name, or a name that is not UTF-8."""
    name = data.draw(st.binary(min_size=1, max_size=12).filter(lambda n: not {0, 47} & set(n)))
    path = os.fsencode(folder) + b"/" + name
    if name not in (b".", b"..") and not Path(os.fsdecode(path)).exists():
        with open(path, "wb") as stream:  # noqa: PTH123 - the name is bytes
            stream.write(b"x")


CHANGES = (change_entry, change_entry, change_log, change_answers, change_bytes, add_file)


def check(good, folder, data):
    """One case."""
    shutil.rmtree(folder, ignore_errors=True)
    source = data.draw(st.sampled_from([good[0], good[0], *good]))
    name = data.draw(
        st.sampled_from([os.fsencode(source.name)] * 4 + [b"caf\xe9", b"\xff", "\uffff".encode()])
    )
    root = folder / "submissions"
    root.mkdir(parents=True)
    place = root / os.fsdecode(name)
    shutil.copytree(source, place)
    for change in data.draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4)):
        change(place, data)
    pinned = Gold(GOLD.labels, GOLD.pinned)
    (evaluation,) = _together([evaluate(place, pinned)], {})
    (shown,) = build_site([evaluation], folder / "site", site_url="https://example.org/board")
    if evaluation.rejected:
        assert all(
            finding.reason for finding in evaluation.findings if finding.verdict == "rejected"
        )
    # What `validate` accepts, `build` shows.
    assert shown.rejected == evaluation.rejected, shown.findings[-1]
    content = json.loads((folder / "site" / "leaderboard.json").read_text("utf-8"))
    slugs = [row["slug"] for view in content["views"].values() for row in view]
    assert bool(slugs) != shown.rejected
    ET.parse(folder / "site" / "feed.xml")
    for page in (folder / "site").rglob("*.html"):
        page.read_text("utf-8")


def fuzzed(num):
    return settings(
        max_examples=num, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip


@fuzzed(NUM_CASES)
@given(data=st.data())
def test_a_changed_entry_is_refused_by_name_or_shown(good, tmp_path_factory, data):
    check(good, tmp_path_factory.getbasetemp() / "fuzz", data)


@pytest.mark.exhaustive
@fuzzed(NUM_SLOW_CASES)
@given(data=st.data())
def test_thousands_of_changed_entries_are_refused_by_name_or_shown(good, tmp_path_factory, data):
    check(good, tmp_path_factory.getbasetemp() / "fuzz-slow", data)
