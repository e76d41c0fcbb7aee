"""The page in a real browser, drawn from runs that were really trained and interrupted."""

import pytest

pytest.importorskip("playwright")

from smallbench.errors import InterruptedRunError
from smallbench.pretraining.pretrain import pretrain
from smallbench.report.page import write_report
from smallbench.report.runs import read_recorded_runs
from tests.pretraining.test_pretrain import StopAfter, tiny
from tests.pretraining.test_recipes import small

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("quick_runs")]


@pytest.fixture(scope="module")
def page_file(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.raises(InterruptedRunError):
        pretrain(tiny(), data=corpus, run_dir=folder / "first", stop=StopAfter(13))
    pretrain(tiny(), data=corpus, run_dir=folder / "first")
    pretrain(tiny(optim__learning_rate=1e-3), data=corpus, run_dir=folder / "second")
    electra = small("electra", train__max_steps=8, train__log_every_steps=2)
    pretrain(electra, data=corpus, run_dir=folder / "electra")
    urls = [str(folder / name) for name in ("first", "second", "electra")]
    write_report(read_recorded_runs(urls), folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def opened(watched, page_file):
    """Opens the page; afterwards, nothing was asked for but the page, and nothing went wrong."""
    yield lambda **options: watched.open(page_file.as_uri(), **options)
    asked = {url for url in watched.requests if not url.startswith("data:")}
    assert asked == {page_file.as_uri()}


LOSS = "figure:has(h3:text-is('Masked-token loss'))"


def shown(page, selector):
    """How many are drawn. (A straight line has no area, which Playwright takes for hidden.)"""
    boxes = page.locator(selector).evaluate_all("all => all.map(e => e.getBoundingClientRect())")
    return sum(box["width"] + box["height"] > 0 for box in boxes)


@pytest.mark.parametrize("with_scripts", [True, False])
def test_runs_are_overlaid_and_the_axis_is_switched_also_without_scripts(opened, with_scripts):
    page = opened(java_script_enabled=with_scripts)
    for run in (0, 1):
        for kind in ("train", "eval", "entropy"):
            assert shown(page, f"{LOSS} [data-run='{run}'][data-kind='{kind}']") == 1
    assert shown(page, f"{LOSS} [data-run='2']") == 0, "it has no such loss"
    for axis, label in (("tokens", "tokens"), ("hours", "hours of training"), ("step", "steps")):
        page.click(f"label[for=axis-{axis}]")
        assert page.locator(f"{LOSS} .x-label:visible").all_inner_texts() == [label]
        assert shown(page, f"{LOSS} .by-{axis} [data-run]") == 6
        assert shown(page, f"{LOSS} .by:not(.by-{axis}) [data-run]") == 0


def test_the_axis_is_switched_by_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator(f"{LOSS} .x-label:visible").all_inner_texts() == ["tokens"]


def test_a_run_is_hidden_and_shown_in_the_legend(opened):
    page = opened()
    page.click("label[for=run-0]")
    assert shown(page, f"{LOSS} [data-run='0']") == 0
    assert shown(page, f"{LOSS} [data-run='1']") == 3
    page.click("label[for=run-0]")
    assert shown(page, f"{LOSS} [data-run='0']") == 3


def test_the_restart_is_marked_once_in_each_chart_of_its_run(opened):
    page = opened()
    assert shown(page, f"{LOSS} .restart") == 1
    assert shown(page, "figure:has(h3:text-is('Generator loss')) .restart") == 0


def test_the_values_under_the_pointer_are_those_of_the_file(opened, page_file):
    page = opened()
    page.locator(f"{LOSS} .plot").scroll_into_view_if_needed()
    box = page.locator(f"{LOSS} .plot svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
    tip = page.locator(f"{LOSS} .tip").inner_text()
    (run, *_) = read_recorded_runs([str(page_file.parent / "first")])
    last = run.by_event["eval"][-1]
    assert "step 24" in tip
    (said,) = [line for line in tip.splitlines() if line.startswith("first eval: ")]
    assert float(said.split(": ")[1]) == pytest.approx(last["mlm_loss"], abs=2e-3)


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_is_readable_in_both_schemes(opened, width, scheme):
    page = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    luminance = """(name) => getComputedStyle(document.body)[name].match(/\\d+/g)
        .slice(0, 3).reduce((sum, value) => sum + Number(value), 0) / 765"""
    paper, ink = (page.evaluate(luminance, name) for name in ("backgroundColor", "color"))
    assert abs(paper - ink) > 0.7
    assert (paper > 0.5) == (scheme == "light")
    sizes = page.evaluate(
        "[...document.querySelectorAll('.x, .y, td, th, dt, .kinds')]"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
