"""An export in W&B: an artifact that names where each of its files is."""

import json

import pytest

pytest.importorskip("wandb")

from smallbench.export.huggingface import export
from smallbench.export.upload import show_export
from smallbench.files import read_json
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig
from tests.export.test_huggingface import pretrained
from tests.tracking.wandb_file import of_kind, read_wandb

pytestmark = pytest.mark.usefixtures("quick_runs")

ON = TrackerConfig(tracker="wandb")


@pytest.mark.usefixtures("no_wandb_key")
def test_an_export_is_an_artifact_of_the_run_it_comes_from(corpus, tmp_path):
    run_dir, out = pretrained(corpus, tmp_path / "run", "bert-plain"), tmp_path / "out"
    export(run_dir, f"file://{out}")
    show_export(ON, f"file://{out}", StorageConfig(), folder=tmp_path)
    run_id = read_json(run_dir / "run.json")["run_id"]
    records = read_wandb(next((tmp_path / "wandb").glob("offline-run-*")))
    (run, *_) = of_kind(records, "run")
    assert (run.run_id, run.run_group, run.job_type) == (f"{run_id}-export", "bert-tiny", "export")
    (artifact,) = of_kind(records, "artifact")
    assert (artifact.name, artifact.type) == (f"export-{run_id}", "model")
    assert json.loads(artifact.metadata)["run_id"] == run_id
    references = {entry.path: entry.ref for entry in artifact.manifest.contents}
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert {"model.safetensors", "smallbench.json"} <= files
    assert references == {name: f"file://{out}/{name}" for name in files}


def test_without_a_tracker_nothing_is_written(tmp_path):
    (tmp_path / "smallbench.json").write_text(
        '{"run_id": "a", "step": 1, "config": {"recipe": ""}}'
    )
    show_export(TrackerConfig(), str(tmp_path), StorageConfig(), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["smallbench.json"]
