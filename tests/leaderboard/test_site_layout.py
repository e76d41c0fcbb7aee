"""In a real browser every page is accessible and fits its window and its paper."""

import pytest

pytest.importorskip("playwright")
pytest.importorskip("axe_playwright_python")

from axe_playwright_python.sync_playwright import Axe

pytestmark = pytest.mark.browser

AXE = {"resultTypes": ["violations"], "preload": False}
"""Without loading the style sheet again by a request, which the page's policy forbids."""


@pytest.mark.slow
def test_focus_is_always_seen(opened):
    page = opened("index.html?pin=entry-0,entry-1")
    for _ in range(45):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
                const e = document.activeElement, styles = [e, e.nextElementSibling]
                    .filter(Boolean).map((one) => getComputedStyle(one));
                return styles.some((s) => s.outlineStyle !== "none" && s.outlineWidth !== "0px");
            }"""
        )
        assert seen, page.evaluate("document.activeElement.outerHTML")


KINDS_OF_PAGES = (
    "index.html?pin=entry-0,entry-1&compare=1",
    "paper.html?pin=entry-0",
    "submit.html",
    "entries/entry-0/index.html",
    "entries/reported-electra/index.html",
    "../unmeasured/index.html",
)
MORE_PAGES = ("index.html", "tiny.html")
"""Boards as well."""
ALL_PAGES = KINDS_OF_PAGES + MORE_PAGES


@pytest.mark.parametrize(
    ("width", "scheme", "addresses"),
    [
        pytest.param(1280, "light", KINDS_OF_PAGES, id="1280-light"),
        pytest.param(1280, "light", MORE_PAGES, marks=pytest.mark.slow, id="1280-light-more"),
        pytest.param(375, "dark", ALL_PAGES, marks=pytest.mark.slow, id="375-dark"),
        pytest.param(768, "light", ALL_PAGES, marks=pytest.mark.slow, id="768-light"),
        pytest.param(1920, "dark", ALL_PAGES, marks=pytest.mark.slow, id="1920-dark"),
        *(
            pytest.param(
                width, scheme, ALL_PAGES, marks=[pytest.mark.slow, pytest.mark.exhaustive],
                id=f"{width}-{scheme}",
            )
            for width, scheme in ((1280, "dark"), (375, "light"))
        ),
    ],
)  # fmt: skip
def test_axe_finds_nothing_and_no_page_is_wider_than_its_window(opened, width, scheme, addresses):
    looks = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for address in addresses:
        page = opened(address, **looks)
        if "?pin=entry-0" in address and "compare" not in address:
            page.click("#row-entry-0 .more")
        if page.locator("script[src$='charts.js']").count() and "reported" not in address:
            page.locator(".live svg").first.wait_for(state="attached")
        for element in page.locator("details:not([open]) summary").all():
            element.click()
        violations = Axe().run(page, options=AXE).response["violations"]
        assert [(address, v["id"], v["nodes"][0]["target"]) for v in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width, address
        paper, ink = (
            page.evaluate(
                """(name) => getComputedStyle(document.body)[name].match(/\\d+/g)
                .slice(0, 3).reduce((sum, value) => sum + Number(value), 0) / 765""",
                name,
            )
            for name in ("backgroundColor", "color")
        )
        assert (paper > 0.5) == (scheme == "light")
        assert abs(paper - ink) > 0.7
        page.close()


def test_five_rows_are_above_the_fold(opened):
    boards = ("index.html", "tiny.html", "any.html", "paper.html", "../unmeasured/index.html")
    for address in boards:
        page = opened(address, viewport={"width": 1280, "height": 800})
        bottoms = page.locator(".board tbody tr[id]").evaluate_all(
            "all => all.map(row => row.getBoundingClientRect().bottom)"
        )
        assert sum(bottom <= 800 for bottom in bottoms) >= 5, address
        page.close()


@pytest.mark.slow
def test_the_printed_page_is_the_table_without_its_controls(opened):
    page = opened()
    page.emulate_media(media="print")
    assert page.locator(".board:visible").count() == 1
    for selector in (".controls", ".tools", ".top"):
        assert page.locator(f"{selector}:visible").count() == 0


OVERFLOWING = """all => all.filter(button => {
  const text = document.createRange();
  text.selectNodeContents(button);
  return text.getBoundingClientRect().left < button.getBoundingClientRect().left - 0.5;
}).map(button => button.innerText)"""


@pytest.mark.parametrize("address", ["index.html", "tiny.html"])
def test_every_label_of_the_table_fits_its_column(address, opened):
    page = opened(address, viewport={"width": 1920, "height": 1000})
    assert page.locator(".board thead button").evaluate_all(OVERFLOWING) == []


def test_the_table_of_five_tasks_shows_all_of_them_on_a_tablet(opened):
    page = opened("tiny.html", viewport={"width": 768, "height": 1000})
    task = page.locator(".board thead th.task").last.bounding_box()
    assert task["x"] + task["width"] <= 768
