"""The site in a real browser, from file://: by mouse, by keyboard, and without JavaScript."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("playwright")

from smallbench.leaderboard.evaluation import evaluate_all
from smallbench.leaderboard.site.build import build_site
from smallbench.leaderboard.site.rows import rows, task_leads
from tests.leaderboard.conftest import GOLD, NUM_SMALL
from tests.leaderboard.synthetic import synthetic_entry, write_made

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b>"


@pytest.fixture(scope="module")
def entries(browsed_entries):
    return browsed_entries


@pytest.fixture(scope="module")
def hostile(entries, browsed_site, tmp_path_factory):
    """A slug that is also an id of the page, texts with markup, and perfect scores as a quote."""
    made = synthetic_entry("board-data", GOLD, seed=76)
    changed = replace(made.entry, name=HOSTILE, authors=(HOSTILE,), notes=(HOSTILE,))
    root = tmp_path_factory.mktemp("hostile")
    write_made(root, replace(made, entry=changed))
    quoted = next(one for one in entries if one.folder.name == "reported-electra")
    reported = replace(quoted.entry.reported, average=100.0, protocol="robust-v1")
    quoted = replace(quoted, entry=replace(quoted.entry, slug="perfect", reported=reported))
    build_site([*evaluate_all(root, GOLD), quoted, *entries], browsed_site.parent / "hostile")


def shown(page):
    """Slugs of the rows that can be seen, in order."""
    return page.locator(".board tbody tr[id]:not(.detail):visible").evaluate_all(
        "all => all.map(row => row.id.replace('row-', ''))"
    )


def in_order(entries, key, *, view="robust", reverse=False):
    """Slugs by a value of theirs, unknown ones last."""
    found = [(row.values, row.slug) for row in rows(entries, view)]
    found = [(d.get(key) or d["tasks"].get(key, {}).get("score"), slug) for d, slug in found]
    known = sorted((f for f in found if f[0] is not None), key=lambda f: f[0], reverse=reverse)
    return [slug for _, slug in known] + [slug for value, slug in found if value is None]


def all_slugs(entries, view="robust"):
    return [row.slug for row in rows(entries, view)]


# ---- sorting, searching, filtering


def test_a_click_on_a_header_sorts_and_a_second_one_reverses(opened, entries):
    page = opened()
    header = page.locator("th[data-key=cola]")
    assert page.get_attribute("th[data-key=average]", "aria-sort") == "descending"
    header.locator("button").click()
    assert shown(page) == in_order(entries, "cola", reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    assert page.locator("[aria-sort]").count() == 1
    header.locator("button").click()
    assert shown(page) == in_order(entries, "cola")
    assert header.get_attribute("aria-sort") == "ascending"
    page.click("th[data-key=gpu_hours] button")
    assert shown(page) == in_order(entries, "gpu_hours")


@pytest.mark.slow
def test_unknown_values_are_sorted_last_in_both_directions(opened, entries):
    page = opened("paper.html")
    for _ in range(2):
        page.click("th[data-key=kwh] button")
        assert all(slug.startswith("reported-") for slug in shown(page)[-6:])


def test_a_search_shows_the_rows_with_all_of_its_words_and_says_how_many(opened, entries):
    page = opened()
    page.fill("[type=search]", "replaced ENTRY-3")
    assert shown(page) == ["entry-3"]
    assert page.locator("output[aria-live=polite]").inner_text() == f"1 of {NUM_SMALL} entries"
    page.fill("[type=search]", "nobody has this")
    assert shown(page) == []
    page.click("text=Clear the filters")
    assert shown(page) == all_slugs(entries)
    assert page.locator("output").inner_text() == f"{NUM_SMALL} entries"


def test_filters_by_tier_size_and_budget_are_combined(opened, entries):
    page = opened("paper.html")
    page.click("text=reported >> nth=0")
    page.check("input[value=reported]", force=True)
    assert all(slug.startswith("reported-") for slug in shown(page))
    page.select_option("[name=size]", "15")
    few = {r.slug for r in rows(entries, "paper") if r.entry.model.num_parameters <= 15e6}
    assert set(shown(page)) == {slug for slug in few if slug.startswith("reported-")}
    page.uncheck("input[value=reported]", force=True)
    assert set(shown(page)) == few
    page.select_option("[name=budget]", "24")
    cheap = {r.slug for r in rows(entries, "paper") if r.usage.hours and r.usage.hours <= 24}
    assert set(shown(page)) == few & cheap


# ---- the address


def test_every_tier_of_a_board_is_in_the_address_and_opens_again(opened):
    page = opened("tiny.html")
    tiers = page.locator("[name=tier]").evaluate_all("boxes => boxes.map((box) => box.value)")
    assert "reference" in tiers
    for tier in tiers:
        page.goto(f"{page.url.partition('?')[0]}?tier={tier}")
        checked = "boxes => boxes.filter((box) => box.checked).map((box) => box.value)"
        assert page.locator("[name=tier]").evaluate_all(checked) == [tier]


def test_every_state_is_in_the_address_and_opens_again(opened, entries):
    page = opened()
    page.click("th[data-key=rte] button")
    page.select_option("[name=size]", "30")
    page.fill("[type=search]", "e")
    page.click("#row-entry-1 .pin")
    page.click("#row-entry-2 .pin")
    page.click("#row-entry-2 .more")
    page.check("input[name=x][value=parameters]", force=True)
    expected, address = shown(page), page.url
    assert set(address.partition("?")[2].split("&")) == {
        "sort=-rte", "size=30", "q=e", "pin=entry-1,entry-2", "open=entry-2", "x=parameters"
    }  # fmt: skip
    other = opened(f"index.html?{address.partition('?')[2]}")
    assert shown(other) == expected
    assert other.input_value("[type=search]") == "e"
    assert other.get_attribute("#row-entry-1 .pin", "aria-pressed") == "true"
    assert other.get_attribute("#row-entry-2 .more", "aria-expanded") == "true"
    assert other.locator(".detail:visible").count() == 1
    other.locator("#scatter svg[aria-label*='AVG against parameters']").wait_for()
    assert other.is_checked("input[name=x][value=parameters]")
    assert other.url.partition("?")[2] == address.partition("?")[2]


def test_the_back_button_undoes_a_step_and_forward_does_it_again(opened, entries):
    page = opened()
    page.click("th[data-key=cola] button")
    page.select_option("[name=size]", "15")
    both = shown(page)
    page.go_back()
    assert shown(page) == in_order(entries, "cola", reverse=True)
    assert page.input_value("[name=size]") == ""
    page.go_back()
    assert shown(page) == all_slugs(entries)
    assert "?" not in page.url
    page.go_forward()
    page.go_forward()
    assert shown(page) == both


@pytest.mark.slow
def test_a_word_is_one_step_back(opened, entries):
    page = opened()
    page.click("[type=search]")
    page.keyboard.type("roberta")
    assert 0 < len(shown(page)) < NUM_SMALL
    page.go_back()
    assert shown(page) == all_slugs(entries)
    assert page.input_value("[type=search]") == ""


@pytest.mark.slow
def test_nonsense_in_the_address_is_left_alone(opened, entries):
    page = opened(
        "index.html?sort=-evil&size=<b>&budget=x&tier=none&pin=nobody,entry-1,,&compare=1&open=<b>"
    )
    assert shown(page) == all_slugs(entries)
    assert not page.locator("dialog[open]").count()
    assert page.locator(".tray .chip").count() == 1


@pytest.mark.slow
def test_the_views_keep_what_was_asked_for(opened):
    page = opened("index.html?q=roberta&pin=entry-1")
    page.click(".tabs [data-view=paper]")
    assert page.url.endswith("paper.html?q=roberta&pin=entry-1")
    assert "reported-roberta" in shown(page)


# ---- pins, comparison, details


def test_up_to_four_are_pinned_and_compared_side_by_side(opened, entries):
    page = opened()
    for number in range(5):
        page.click(f"#row-entry-{number} .pin")
    assert page.locator(".tray .chip").count() == 4
    assert "take one off first" in page.locator("[role=status]").inner_text()
    page.click(".tray >> text=Compare")
    by_slug = {row.slug: row for row in rows(entries, "robust")}
    four = [by_slug[f"entry-{number}"] for number in range(4)]
    dialog = page.locator("dialog[open]")
    names = dialog.locator("thead th").all_inner_texts()
    assert names == [row.entry.name for row in four]
    line = dialog.locator("tr:has(th:text-is('AVG')) td")
    for cell, row in zip(line.all(), four, strict=True):
        # Where .5 is rounded to differs between Python and JavaScript.
        said = [float(number) for number in re.findall(r"\d+\.\d\d", cell.inner_text())]
        expected = [row.average, row.interval.low, row.interval.high]
        assert said == pytest.approx(expected, abs=0.0101)
    best = max(range(4), key=lambda n: four[n].average)
    assert "lead-cell" in line.nth(best).get_attribute("class")
    verdicts = dialog.locator("tr:has(th:text-is('Verdict on AVG')) td").all_inner_texts()
    for said, row in zip(verdicts, four, strict=True):
        for word, found in (
            ("leads", [o for o in four if o.slug in row.leads]),
            ("is behind", [o for o in four if row.slug in o.leads]),
        ):
            names = ", ".join(other.entry.name for other in found)
            assert (f"{word} {names}" in said) if found else (word not in said)
    dialog.locator("svg[aria-label^='Pretraining loss']").wait_for()
    leads = task_leads(rows(entries, "robust"))
    order = [row.slug for row in rows(entries, "robust")]
    for column, row in enumerate(four):
        said = dialog.locator(f".verdict[data-task=qqp][data-slug={row.slug}]").inner_text()
        led = [other.entry.name for other in four
               if int(leads[row.slug]["qqp"], 16) >> order.index(other.slug) & 1]  # fmt: skip
        assert (f"leads {', '.join(led)}" in said) if led else ("leads" not in said), column
    page.keyboard.press("Escape")
    assert not page.locator("dialog[open]").count()
    page.go_back()
    assert page.locator("dialog[open]").count() == 1
    page.go_back()
    assert not page.locator("dialog[open]").count()


def test_details_open_below_their_row_and_stay_there_when_sorted(opened, entries):
    page = opened()
    page.click("#row-entry-2 .more")
    detail = page.locator("#row-entry-2 + .detail")
    assert page.get_attribute("#row-entry-2 .more", "aria-expanded") == "true"
    command = "smallbench leaderboard reproduce submissions/entry-2 --glue=hub"
    assert detail.locator(".command").inner_text() == command
    assert "A note on 2." in detail.inner_text()
    page.click("th[data-key=name] button")
    assert detail.count() == 1
    page.click("#row-entry-2 .more")
    assert detail.count() == 0
    page.go_back()
    assert detail.count() == 1


def test_a_name_leads_to_the_entrys_page_and_its_address_stays(opened, entries):
    page = opened()
    page.click("#row-entry-0 .model a >> nth=0")
    assert page.url.endswith("entries/entry-0/index.html")
    assert page.locator("h1").inner_text().startswith(entries[0].entry.name)
    page.locator("#curve .live svg, #curve.live svg").first.wait_for()
    page.go_back()
    assert page.url.endswith("index.html")


def test_text_of_submitters_stays_text_whatever_shows_it(opened, hostile):
    page = opened("../hostile/index.html?pin=board-data,entry-1")
    page.click("#row-board-data .more")
    assert HOSTILE in page.locator(".detail").inner_text()
    assert HOSTILE in page.locator(".tray").inner_text()
    page.click(".tray >> text=Compare")
    assert HOSTILE in page.locator("dialog").inner_text()
    page.locator("dialog svg[aria-label*='onerror']").first.wait_for()
    page.keyboard.press("Escape")
    page.goto(page.url.partition("?")[0].replace("index.html", "entries/board-data/index.html"))
    assert page.locator("h1 bdi").inner_text() == HOSTILE
    for context in page.context.pages:
        assert context.locator("img, b:text-is('bold')").count() == 0
    # Whatever ran would have said so: `watched` hears dialogs, errors and failed requests.


# ---- the keyboard alone


def test_the_keyboard_alone_sorts_searches_pins_compares_and_opens(opened, entries):
    page = opened()

    def focused(selector):
        return page.evaluate("s => document.activeElement.matches(s)", selector)

    def tab_to(selector, most=80):
        for _ in range(most):
            if focused(selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached by Tab")

    page.keyboard.press("Tab")
    assert focused(".skip")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("/")
    assert focused("[type=search]")
    page.keyboard.type("entry")
    tab_to("th[data-key=sst2] button")
    page.keyboard.press("Enter")
    expected = in_order(entries, "sst2", reverse=True)
    assert shown(page) == expected
    assert focused("th[data-key=sst2] button"), "it is where it was"
    tab_to(f"#row-{expected[0]} .pin")
    page.keyboard.press("Space")
    tab_to(f"#row-{expected[1]} .pin")
    page.keyboard.press("Space")
    tab_to(".tray .button", most=150)
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert focused(".tray .button"), "back where it was opened"


# ---- without JavaScript, other boards, charts


def test_without_javascript_all_rows_tables_and_pages_are_there(opened, entries):
    page = opened(java_script_enabled=False)
    assert shown(page) == all_slugs(entries)
    for selector in (".controls", ".tools", "#scatter"):
        assert page.locator(f"{selector}:visible").count() == 0
    assert page.locator("#by-task tbody tr:visible").count() == NUM_SMALL
    assert page.locator("#by-task tbody .range:visible").count() == 8 * NUM_SMALL
    assert page.locator(".records li:visible").count() >= 1
    assert page.locator(".strip:visible").count() == NUM_SMALL
    page.click("#row-entry-1 .model a >> nth=0")
    assert page.locator("#curve td:visible").count() >= 20
    assert page.locator("[data-view=robust] .strip:visible").count() == 8
    page.click("text=Submit")
    assert page.locator("h1").inner_text() == "Submitting to the leaderboard"


def test_the_tab_of_a_track_has_its_own_tasks(opened, entries):
    page = opened("tiny.html")
    assert shown(page) == all_slugs(entries, "tiny")
    columns = page.locator(".board thead .task button").all_inner_texts()
    assert columns == ["CoLA", "SST", "MRPC", "STS", "RTE"]
    assert page.locator(".tabs a").all_inner_texts()[1].startswith("Two CPU cores")


def test_charts_are_redrawn_with_the_rows_of_the_table(opened, entries):
    page = opened()
    # Out of sight it would wait until somebody comes near.
    page.locator("#scatter").scroll_into_view_if_needed()
    label = page.locator("#scatter svg[aria-label*='AVG against hours']")
    label.wait_for()
    assert f": {NUM_SMALL} entries," in label.get_attribute("aria-label")
    page.fill("[type=search]", "entry-3")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.locator("#scatter svg[aria-label*=': 1 entry,']").wait_for()
    page.fill("[type=search]", "")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.check("input[name=x][value=kwh]", force=True)
    page.locator("#scatter svg[aria-label*='AVG against kWh']").wait_for()
    # Under the pointer, a name.
    dots = page.locator("#scatter circle")
    assert dots.count() == NUM_SMALL
    dots.first.hover(force=True)
    page.locator("#scatter svg text:has-text('AVG')").first.wait_for()


def test_quoted_scores_are_not_on_the_pareto_front(opened, hostile):
    page = opened("../hostile/index.html?x=parameters")
    page.locator("#scatter").scroll_into_view_if_needed()
    chart = page.locator("#scatter svg[aria-label*='AVG against parameters']")
    chart.wait_for()
    label = chart.get_attribute("aria-label")
    assert f"{NUM_SMALL + 2} entries" in label
    assert not label.endswith("to ELECTRA")


@pytest.mark.slow
def test_a_board_of_one_entry_has_no_filter_with_a_single_choice_and_works(opened):
    page = opened("../single/index.html")
    assert page.locator(".controls select[name=architecture]").count() == 0
    page.fill("[type=search]", "nobody has this")
    assert shown(page) == []
    page.click("text=Clear the filters")
    assert shown(page) == ["entry-0"]
