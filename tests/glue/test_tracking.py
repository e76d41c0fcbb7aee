"""GLUE scores in W&B: the table is the summary, with an interval around each mean."""

import json

import pytest

pytest.importorskip("wandb")

from smallbench.files import write_json
from smallbench.glue.protocols import summarize
from smallbench.glue.tracking import COLUMNS, recipe_of, show_summary, table_rows
from smallbench.tracking.config import TrackerConfig
from tests.glue.runs import run_of
from tests.tracking.wandb_file import of_kind, read_wandb, summary

ON = TrackerConfig(tracker="wandb")


def of_scores(*scores):
    return summarize([run_of("cola", score, seed=seed) for seed, score in enumerate(scores)])


def test_the_interval_is_students():
    """By hand: mean 72, deviation 2, t(0.975, 2 degrees) = 4.3027."""
    lower, upper = table_rows(of_scores(0.70, 0.72, 0.74))[0][4:6]
    assert lower == pytest.approx(72 - 4.3027 * 2 / 3**0.5, abs=1e-3)
    assert upper == pytest.approx(72 + 4.3027 * 2 / 3**0.5, abs=1e-3)


def test_one_seed_has_no_interval():
    ((_, _, _, mean, lower, upper, seeds, failed),) = table_rows(of_scores(0.7))
    assert (mean, lower, upper, seeds, failed) == (pytest.approx(70), None, None, 1, 0)


@pytest.mark.usefixtures("no_wandb_key")
def test_the_table_is_read_back(tmp_path):
    scores, export = of_scores(0.70, 0.72, 0.74), tmp_path / "export"
    write_json(export / "smallbench.json", {"config": {"recipe": "bert-small"}})
    for _ in range(2):
        show_summary(ON, scores, recipe=recipe_of(str(export)), folder=tmp_path / "out")
    (directory,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    records = read_wandb(directory)
    (run, *_) = of_kind(records, "run")
    assert (run.run_group, run.job_type) == ("bert-small", "glue")
    (path,) = directory.glob("files/media/table/*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == list(COLUMNS)
    assert [tuple(row) for row in table["data"]] == table_rows(scores)
    assert summary(records)["glue/cola"] == pytest.approx(72)
    assert summary(records)["glue/average"] is None, "not all eight tasks are there"
