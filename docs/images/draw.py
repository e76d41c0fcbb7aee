"""Draw the pictures of README: `python -m docs.images.draw RUN_DIR…`, from the root of a checkout.

The board has made-up entries, those of the tests; the report is that of the runs.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.site.build import build_site
from smallbench.report.page import write_report
from smallbench.report.runs import read_recorded_runs
from smallbench.storage.config import StorageConfig
from tests.browser import ARGUMENTS
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made

NAMES = ("DeBERTa, gated", "ELECTRA, pair masks", "RoBERTa", "BERT, spans", "BERT")
SIZE = {"width": 1100, "height": 640}
HERE = Path(__file__).parent


def draw(page: Page, html: Path, name: str, *, heading: str = "") -> None:
    """Save a page, from its top or a heading on, as docs/images/NAME."""
    page.goto(html.as_uri())
    page.wait_for_timeout(500)  # charts are drawn by scripts
    if heading:
        page.locator("h2", has_text=heading).first.evaluate(
            "h => window.scrollTo(0, h.offsetTop - 70)"  # from below the bar at the top
        )
    page.screenshot(path=HERE / name)


def main(run_dirs: tuple[str, ...]) -> None:
    """Draw both."""
    gold = synthetic_gold(scale=0.1)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        for number, title in enumerate(NAMES):
            made = synthetic_entry(f"made-up-{number}", gold, seed=number, quality=2 - number)
            write_made(folder / "entries", replace(made, entry=replace(made.entry, name=title)))
        build_site(evaluate_all(folder / "entries", gold), folder / "site")
        write_report(read_recorded_runs(run_dirs, StorageConfig()), folder / "report.html")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        page = browser.new_page(viewport=SIZE)
        draw(page, folder / "site" / "index.html", "board.png")
        draw(page, folder / "report.html", "report.png", heading="Learning")
        browser.close()


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
