"""Results in a bucket: shards on several machines give the result of one machine."""

import shutil
from pathlib import Path

import pytest

from smallbench.errors import CredentialsError, InterruptedRunError
from smallbench.glue.grid import measure
from smallbench.glue.results import RESULT_FILE
from smallbench.glue.results_storage import fetch_results, keeper, results_folder
from smallbench.stop import NEVER, Stop
from smallbench.storage import open_storage
from tests.glue.test_grid import QUICK, SHORT, data, encoder, tree, whole

__all__ = ["data", "encoder", "whole"]


def shard(encoder, data, number, bucket, disk: Path, stop=NEVER):
    """A machine with an empty disk."""
    shutil.rmtree(disk, ignore_errors=True)
    url = f"{bucket.url}/glue"
    with results_folder(url, bucket.config) as folder:
        return measure(
            encoder,
            data,
            QUICK,
            **SHORT,
            out=folder,
            shard=(number, 3),
            on_stored=keeper(url, folder, bucket.config),
            stop=stop,
        )


@pytest.mark.slow
def test_shards_fill_one_place_with_a_single_machines_results(
    encoder, data, whole, s3_bucket, tmp_path
):
    for number in (2, 3, 1):
        shard(encoder, data, number, s3_bucket, tmp_path / "disk")
    with results_folder(f"{s3_bucket.url}/glue", s3_bucket.config) as folder:
        assert tree(folder) == tree(whole)


def test_an_interrupted_shard_repeats_no_whole_run(encoder, data, moto_bucket, tmp_path):
    storage = open_storage(f"{moto_bucket.url}/glue", moto_bucket.config)

    def results():
        return {s.key: s.modified_unix_seconds for s in storage.list() if RESULT_FILE in s.key}

    with pytest.raises(InterruptedRunError):
        shard(encoder, data, 1, moto_bucket, tmp_path / "disk", stop=Stop(lambda: bool(results())))
    before = results()
    assert len(before) == 1
    shard(encoder, data, 1, moto_bucket, tmp_path / "disk")
    after = results()
    assert {key: after[key] for key in before} == before
    assert len(after) > 1
    # A run without its result is incomplete and is not downloaded.
    result = next(iter(after))
    storage.delete([result])
    with results_folder(storage.url, moto_bucket.config) as folder:
        found = [p.relative_to(folder).as_posix() for p in folder.rglob("*.tsv")]
    assert found
    assert not [name for name in found if name.startswith(result.rpartition("/")[0])]


def test_the_runs_of_steps_are_fetched_from_a_place_as_well(tmp_path):
    storage = open_storage((tmp_path / "bucket").as_uri())
    run = "step-0000000010/runs/cola/lr-1e-04_epochs-3_seed-1"
    for key in (f"{run}/dev.tsv", f"{run}/{RESULT_FILE}", "step-0000000010/runs/rte/x/dev.tsv"):
        storage.put(key, b"x")
    fetch_results(storage, tmp_path / "disk")
    found = {path.name for path in (tmp_path / "disk" / run).iterdir()}
    assert found == {"dev.tsv", RESULT_FILE}
    assert not (tmp_path / "disk/step-0000000010/runs/rte").exists()


def test_a_place_that_refuses_shows_before_any_work(moto_bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "smallbench.storage.s3.S3Storage.check",
        lambda self: (_ for _ in ()).throw(CredentialsError("refused")),
    )
    with pytest.raises(CredentialsError):
        keeper(f"{moto_bucket.url}/glue", tmp_path, moto_bucket.config)
