"""Findings of `smallbench doctor`, and its exit codes."""

import json

import pytest
import torch

from smallbench.errors import CredentialsError, UnavailableError
from smallbench.jobs.doctor import Options, run


def findings(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_machine_that_can_train_has_no_problems(capsys):
    run(Options(json=True))
    found = findings(capsys)
    assert found["problems"] == []
    assert found["training"]["precision"] in {"fp32", "bf16", "fp16"}
    assert found["shared_memory"]["gib"] > 0


def test_a_report_for_people_names_every_finding(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(Options(storage=str(tmp_path / "runs")))
    out = capsys.readouterr().out
    starts = {line.split()[0] for line in out.splitlines()}
    assert {"python", "memory", "shm", "disk", "storage", "gpu", "training", "measured"} <= starts
    assert "can be written and read" in out


def test_a_missing_required_gpu_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="torch finds no GPU"):
        run(Options(device="cuda", json=True))
    assert len(findings(capsys)["problems"]) == 1


@pytest.mark.parametrize(
    ("cuda", "remedy"), [(None, "is built without CUDA"), ("12.6", "docker run --gpus all")]
)
def test_a_missing_gpu_is_explained(cuda, remedy, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UnavailableError, match=remedy):
        run(Options(device="cuda", json=True))


def test_a_folder_that_takes_no_runs_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UnavailableError, match="start in a folder that you may write"):
        run(Options(json=True))
    assert not findings(capsys)["disk"]["is_writable"]


def test_a_storage_that_refuses_ends_it_as_it_would_end_training(capsys, monkeypatch, moto_bucket):
    options = Options(
        storage=f"{moto_bucket.url}/runs", endpoint_url=moto_bucket.server.endpoint_url, json=True
    )
    run(options)
    assert findings(capsys)["storage"]["problem"] is None
    assert moto_bucket.server.client().list_objects_v2(Bucket=moto_bucket.name)["KeyCount"] == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(CredentialsError, match="AWS_PROFILE"):
        run(options)
    assert "AWS_PROFILE" in findings(capsys)["storage"]["problem"]


def test_a_key_of_wandb_is_found_and_not_shown(capsys, monkeypatch, no_wandb_key):
    pytest.importorskip("wandb")
    run(Options(json=True))
    assert findings(capsys)["wandb"] == {"has_key": False}
    monkeypatch.setenv("WANDB_API_KEY", key := "0123456789abcdef" * 2 + "01234567")
    run(Options())
    out = capsys.readouterr().out
    assert "has a key" in out
    assert key not in out
