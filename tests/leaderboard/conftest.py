"""Made-up entries beside the paper's, and the sites that show them."""

from dataclasses import replace
from pathlib import Path

import pytest

from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.gold import NO_GOLD
from smallbench.leaderboard.site.build import build_site
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made

ROOT = Path(__file__).parents[2]
GOLD = synthetic_gold(scale=0.02)
SITE_URL = "https://example.org/board"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&{{ 7*7 }}"
FORMULA = '=HYPERLINK("https://evil.example")'
NUM_ENTRIES = 6
NUM_SMALL = NUM_ENTRIES - 1
"""Of the first tab: `entry-5` has more parameters than its track admits."""


def made(slug, **changes):
    result = synthetic_entry(slug, GOLD, seed=len(slug), quality=len(slug) % 3)
    return replace(result, entry=replace(result.entry, **changes))


@pytest.fixture(scope="session")
def entries(tmp_path_factory):
    """Good, hostile, unpriced and rejected entries beside the paper's."""
    root = tmp_path_factory.mktemp("entries")
    write_made(root, made("good"))
    write_made(
        root,
        made("hostile", name=HOSTILE, authors=(HOSTILE,), notes=(HOSTILE,), contact=HOSTILE),
    )
    write_made(root, made("note-1", name=FORMULA))  # a slug that is also an id of the page
    unpriced = made("unpriced")
    hardware = replace(unpriced.entry.hardware, usd_per_hour=None)
    energy = replace(unpriced.entry.energy, kwh=None, method=None)
    entry = replace(unpriced.entry, hardware=hardware, energy=energy)
    write_made(root, replace(unpriced, entry=entry))
    write_made(root, made("rejected", tier="verified"))
    return evaluate_all(root, GOLD) + evaluate_all(ROOT / "submissions", NO_GOLD)


@pytest.fixture(scope="session")
def site(entries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "site"
    build_site(entries, folder, site_url=SITE_URL)
    return folder


@pytest.fixture(scope="session")
def browsed_entries(tmp_path_factory):
    """Entries of two tracks beside the paper's."""
    root = tmp_path_factory.mktemp("entries")
    for number in range(5):
        tiny = synthetic_entry(f"tiny-{number}", GOLD, seed=number, track="tiny")
        write_made(root, tiny)
    for number in range(NUM_ENTRIES):
        result = synthetic_entry(f"entry-{number}", GOLD, seed=number, quality=2 - 3 * number)
        notes = (f"A note on {number}.",)
        write_made(root, replace(result, entry=replace(result.entry, notes=notes)))
    return evaluate_all(root, GOLD) + evaluate_all(ROOT / "submissions", NO_GOLD)


@pytest.fixture(scope="session")
def browsed_site(browsed_entries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "site"
    build_site(browsed_entries, folder)
    reported = [entry for entry in browsed_entries if entry.tier == "reported"]
    build_site(reported, folder.parent / "unmeasured")
    build_site(browsed_entries[:1], folder.parent / "single")
    return folder


@pytest.fixture
def opened(watched, browsed_site):
    """Open a page; check at the end that it requested only files of the site, without errors."""
    yield lambda address="index.html", **options: watched.open(
        f"{browsed_site.as_uri()}/{address}", **options
    )
    home = f"{browsed_site.parent.as_uri()}/"
    assert [url for url in watched.requests if not url.startswith((home, "data:"))] == []
