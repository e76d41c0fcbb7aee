"""The page says what the runs' files say, needs nothing but itself, and stays small."""

import re
from dataclasses import replace

import pytest

from smallbench.errors import DataError
from smallbench.glue.results import run_directory
from smallbench.glue.results import write_run as store_result
from smallbench.jobs.cli import main
from smallbench.report.page import render_report, write_report
from smallbench.report.runs import read_recorded_run, read_recorded_runs
from tests.glue.runs import run_of
from tests.report.runs import records, write_run


def text_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_page_of_one_run_has_its_numbers_and_settings(tmp_path):
    page = render_report(read_recorded_runs([write_run(tmp_path / "tiny")]))
    text = text_of(page)
    for expected in ("tiny", "Steps 100", "Tokens 12,800", "Hours of training 1.00", "MFU, median"):
        assert expected in text
    assert "Held-out loss, all terms, last 0.6767" in text
    assert "optim.learning_rate 0.001" in text


def test_nothing_is_fetched(tmp_path):
    page = render_report(read_recorded_runs([write_run(tmp_path / "tiny")]))
    assert not re.search(r"""(?:src|href|action)=["'](?!data:)|url\(|@import|https?:""", page)


def test_runs_that_are_overlaid_show_what_differs(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", optim={"learning_rate": 5e-4})
    page = render_report(read_recorded_runs([a, b]))
    text = text_of(page)
    assert "1 settings" in text
    assert "optim.learning_rate 0.001 0.0005" in text
    assert page.count('data-run="1" data-kind="train"') >= 3


def test_runs_of_one_name_are_told_apart_by_their_place(tmp_path):
    urls = [write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")]
    assert [run.name for run in read_recorded_runs(urls)] == urls


def test_one_loss_is_drawn_once_and_never_without_its_own_entropy(tmp_path):
    page = render_report(read_recorded_runs([write_run(tmp_path / "mlm")]))
    assert "<h3>Masked-token loss</h3>" in page
    assert "<h3>Loss, all terms weighted</h3>" not in page, "it is the same line"
    assert "<h3>Generator loss</h3>" not in page, "an entropy alone is no chart"
    assert page.count('data-kind="entropy"') == 3, "one line against each axis"


def test_a_replaced_token_run_has_its_two_losses_and_their_sum(tmp_path):
    rows = [
        {**row, "generator_loss": row["loss"] / 2, "discriminator_loss": 0.5} for row in records()
    ]
    for row in rows:
        del row["mlm_loss"]
    page = render_report(read_recorded_runs([write_run(tmp_path / "electra", rows=rows)]))
    assert re.findall(r"<h3>(.*?)</h3>", page)[:3] == [
        "Generator loss", "Discriminator loss", "Loss, all terms weighted",
    ]  # fmt: skip


def test_restarts_are_drawn_at_the_first_step_of_an_attempt(tmp_path):
    run = read_recorded_run(write_run(tmp_path / "r", first_steps=(0, 40, 80, 100)))
    assert run.restarts("step") == [40, 80], "the last attempt found the run finished"
    assert run.restarts("hours") == pytest.approx([0.4, 0.8])
    assert render_report([run]).count("restart run-0") > 0


def test_a_missing_measurement_is_a_dash_and_not_zero(tmp_path):
    summary = {"energy_kwh": None, "energy_method": "none", "gpu_active_seconds": 7200.0}
    text = text_of(render_report([read_recorded_run(write_run(tmp_path / "r", summary=summary))]))
    assert "Energy, kWh –" in text
    assert "GPU-active hours 2.00" in text
    assert "Cost" not in text, "nobody recorded one"


def test_accounting_of_the_records_is_shown(tmp_path):
    rows = [{**row, "energy_kwh": row["step"] / 50, "cost": row["step"] / 10} for row in records()]
    page = render_report([read_recorded_run(write_run(tmp_path / "r", rows=rows))])
    assert "<h3>Energy</h3>" in page
    assert "Cost 10.00" in text_of(page)


def test_numbers_that_are_missing_break_the_line(tmp_path):
    rows = records()
    for row in rows:
        if 40 < row["step"] < 60:
            row["loss"] = row["mlm_loss"] = None
    page = render_report([read_recorded_run(write_run(tmp_path / "r", rows=rows))])
    (path, *_) = re.findall(r'data-kind="train" d="([^"]*)"', page)
    assert path.count("M") == 2


@pytest.mark.parametrize(
    "steps",
    [
        50_000,
        pytest.param(200_000, marks=pytest.mark.slow),
        pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_a_page_stays_small_whatever_the_number_of_steps(steps, tmp_path):
    run_dir = write_run(tmp_path / "long", rows=records(steps, every=50))
    write_report(read_recorded_runs([run_dir]), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_names_are_text_and_never_markup(tmp_path):
    page = render_report(read_recorded_runs([write_run(tmp_path / "<script>alert(1)<")]))
    assert "<script>alert" not in page


@pytest.mark.parametrize("content", [None, ""])
def test_a_folder_without_a_run_is_reported_as_such(tmp_path, content):
    if content is not None:
        write_run(tmp_path / "run", rows=[])
    with pytest.raises(DataError, match=r"is not a run|has logged nothing yet"):
        read_recorded_run(str(tmp_path / "run"))


def test_a_run_in_a_storage_is_read_from_there(tmp_path):
    write_run(tmp_path / "bucket" / "run")
    assert read_recorded_run(f"file://{tmp_path}/bucket/run").name == "run"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "line 1: expected a JSON object"),
        ('{"event": "train", "step": "x"}', "line 1: expected a JSON object"),
        ('{"event": "train", "step": 1, "tokens": [], "train_seconds": 1}', "record of step 1"),
        ("x", r"metrics.jsonl, line 1: not a JSON object \(Expecting value\); restore it from"),
    ],
)
def test_records_of_another_kind_are_refused_by_the_right_name(line, reason, tmp_path):
    url = write_run(tmp_path / "tiny")
    (tmp_path / "tiny" / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=reason) as refused:
        read_recorded_run(url)
    assert "run.json" not in str(refused.value)


def test_glue_scores_are_drawn_at_the_flops_of_their_checkpoints(tmp_path):
    rows = [
        {**row, "train_flops": 1e12 * row["step"]} if row["event"] == "train" else row
        for row in records(every=10)
    ]
    run = replace(
        read_recorded_run(write_run(tmp_path / "r", rows=rows)), scores={25: 50.0, 100: 60.0}
    )
    found = run.series("glue/score", "flops")
    assert (found.x, found.y) == ((2.5e13, 1e14), (50.0, 60.0))
    assert run.series("eval/loss", "flops").x == (0.0, 2e13, 4e13, 6e13, 8e13, 1e14)
    page = render_report([run])
    assert "<h3>GLUE along the way</h3>" in page
    assert "training FLOPs" in page


def test_flops_without_records_are_not_an_axis(tmp_path):
    page = render_report([read_recorded_run(write_run(tmp_path / "r"))])
    assert "training FLOPs" not in page
    assert "GLUE along the way" not in page


def test_the_page_says_by_which_protocol_and_measurement_scores_are_drawn(tmp_path):
    recorded, page = write_run(tmp_path / "r"), tmp_path / "page.html"
    for folder, scores in (("whole", (0.3, 0.5)), ("look", (0.1,))):
        for seed, score in enumerate(scores):
            run = run_of(score=score, seed=seed, model="m (run abcd1234, step 20)")
            store_result(run_directory(tmp_path / folder, run.settings), run, {})
    glue = f"--glue={tmp_path}/whole,{tmp_path}/look"
    assert main(["report", recorded, glue, f"--out={page}", "--protocol=paper"]) == 0
    text = " ".join(page.read_text().split())
    assert "GLUE along the way is the mean of CoLA by protocol paper. Of two measurements" in text
