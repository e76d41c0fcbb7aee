"""Every stage's pod template, run for real from what `smallbench k8s render` prints.

The stages of one tiny run follow each other in one bucket, as on a cluster: prepare in three pods,
pretrain with a SIGTERM in its middle, a sweep, export, GLUE in three pods, the table.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
import yaml

from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.data.shards import Manifest
from smallbench.data.transfer import local_corpus
from smallbench.errors import ExitCode
from smallbench.glue.results_storage import results_folder
from smallbench.jobs.cli import main
from smallbench.storage import open_storage
from tests.cluster.job_controller import Ended, verdict
from tests.cluster.kustomize import IMAGE
from tests.glue.test_grid import tree
from tests.pods.cluster import Cluster
from tests.pods.conftest import secret_of
from tests.servers.s3 import Bucket, use_credentials

pytestmark = pytest.mark.docker

NUM_PODS = 3
PREPARE = "--vocab_size=300 --sequence_length=32 --eval_fraction=0.1 --min_characters=60"
TINY = (
    "bert-tiny --sequence_length=32 --model.hidden_size=32 --model.intermediate_size=64 "
    "--model.embedding_size=16 --model.num_hidden_layers=1 --train.global_batch_size=8 "
    "--train.num_eval_rows=16 --train.save_every_steps=50"
)
GLUE = "--glue=samples --tasks=cola,rte,stsb --learning_rate=1e-3 --seeds=1,2 --epochs=1"


@pytest.fixture(autouse=True)
def _keys(lab: Bucket, monkeypatch: pytest.MonkeyPatch):
    """For what looks into the bucket from here."""
    use_credentials(lab.server, monkeypatch)


@pytest.fixture
def render(lab: Bucket, capsys: pytest.CaptureFixture[str]):
    """The documents that a command line prints, for this bucket and a node without a GPU."""

    def render(line: str, bucket: str = lab.url, endpoint: str = lab.server.endpoint_url) -> list:
        words = (
            f"k8s render {line} --image={IMAGE} --bucket={bucket} --gpu=none --cpus=1 "
            f"--endpoint_url={endpoint}"
        )
        capsys.readouterr()
        assert main(shlex.split(words)) == 0
        return list(yaml.safe_load_all(capsys.readouterr().out))

    return render


def last_line(log: str) -> str:
    return log.strip().splitlines()[-1]


def test_three_pods_prepare_the_corpus_of_one_machine(
    cluster: Cluster, lab: Bucket, render, tmp_path: Path
):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(5):
        lines = [f"Document {i} of file {number % 4}. " * (3 + i % 5) for i in range(40)]
        (texts / f"{number}.txt").write_text("\n\n".join(lines))
    config = PrepareConfig(
        corpus=str(texts), vocab_size=300, sequence_length=32, eval_fraction=0.1, min_characters=60
    )
    prepare(config, out=tmp_path / "one", workers=1)
    storage = open_storage(f"{lab.url}/text", lab.config)
    for path in texts.iterdir():
        storage.upload(path, path.name)

    documents = render(f"prepare --pods={NUM_PODS} --flags='{PREPARE} --workers=1'")
    pods = [cluster.start(documents, index=index) for index in range(NUM_PODS)]
    for pod in pods:
        assert cluster.wait(pod) == 0, cluster.logs(pod)
    corpus = local_corpus(f"{lab.url}/corpus", lab.config, cache=tmp_path / "cache")
    ours, theirs = Manifest.read(tmp_path / "one"), Manifest.read(corpus)
    assert theirs.shards == ours.shards, "every file's SHA-256"
    assert theirs.counts == ours.counts
    assert theirs.counts["duplicates"] > 0
    assert theirs.tokenizer == ours.tokenizer


def test_a_pod_is_restricted_and_sees_its_secret(cluster: Cluster, render):
    """What podman made of the template: user, root, capabilities, memory, keys, threads."""
    documents = render("pretrain " + TINY + " --train.max_steps=1 --run=looked-at")
    container = cluster.start(documents)
    cluster.wait(container)
    found = cluster.inspect(container)
    assert found["Config"]["User"] == "10001:10001"
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["EffectiveCaps"] in (None, [])
    assert "no-new-privileges" in " ".join(found["HostConfig"]["SecurityOpt"])
    limits = documents[-1]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert found["HostConfig"]["Memory"] == int(limits["memory"].removesuffix("Gi")) << 30
    names = [variable.partition("=")[0] for variable in found["Config"]["Env"]]
    assert {"AWS_ACCESS_KEY_ID", "OMP_NUM_THREADS"} <= set(names)
    assert "OMP_NUM_THREADS=1" in found["Config"]["Env"]
    assert cluster.wait(container) == 0, cluster.logs(container)


def test_sigterm_saves_and_the_next_pod_goes_on(cluster: Cluster, lab: Bucket, render):
    documents = render(f"pretrain {TINY} --train.max_steps=800 --run=mine")
    spec = documents[-1]["spec"]
    first = cluster.start(documents)
    runs = open_storage(f"{lab.url}/runs/mine", lab.config)
    deadline = time.monotonic() + 300
    while not runs.list("commits/"):
        assert time.monotonic() < deadline, cluster.logs(first)
        assert cluster.state(first)["Status"] == "running", cluster.logs(first)
        time.sleep(0.5)
    for probe in ("startupProbe", "livenessProbe"):
        words = spec["template"]["spec"]["containers"][0][probe]["exec"]["command"]
        cluster.podman("exec", first, *words)  # raises where a healthy pod would not pass
    cluster.terminate(first, spec["template"]["spec"]["terminationGracePeriodSeconds"])
    code = cluster.wait(first)
    assert code == ExitCode.INTERRUPTED, cluster.logs(first)
    assert verdict(spec, [Ended(code)]) == "again"
    saved = max(stored.key for stored in runs.list("commits/"))

    # The same Job again: fewer steps, which only end the run earlier, would be another run.
    second = cluster.start(documents)
    assert cluster.wait(second) == 0, cluster.logs(second)
    assert max(stored.key for stored in runs.list("commits/")) > saved
    record = json.loads(runs.get("run.json"))
    assert len(record["attempts"]) == 2
    assert record["attempts"][1]["first_step"] == int(saved[-15:-5])
    lease = json.loads(runs.get("lease.json"))
    assert lease["holder"] == f"uid-of-{cluster.names[-1]}"


def test_a_pod_of_a_sweep_does_its_own_row(cluster: Cluster, lab: Bucket, render):
    documents = render(f"sweep {TINY} --train.max_steps=4 --learning_rates=1e-3,2e-3 --run=rates")
    cluster.run(documents, index=1)
    storage = open_storage(f"{lab.url}/runs", lab.config)
    record = json.loads(storage.get("rates-1/run.json"))
    assert record["config"]["optim"]["learning_rate"] == 2e-3
    assert not storage.list("rates-0/")


def test_export_and_three_glue_pods_make_the_result_of_one(
    cluster: Cluster, lab: Bucket, render, tmp_path: Path
):
    cluster.run(render("export --run=mine"))
    documents = render(f"glue --run=mine --pods={NUM_PODS} --flags='{GLUE}'")
    for index in range(NUM_PODS):
        cluster.run(documents, index=index)
    storage = open_storage(f"{lab.url}/glue", lab.config)
    with results_folder(f"{lab.url}/glue/mine", lab.config) as folder:
        shared = tree(folder)
    assert len({path.parent for path in shared}) == 6
    for stored in storage.list("mine/"):
        storage.delete([stored.key])
    cluster.run(render(f"glue --run=mine --pods=1 --flags='{GLUE}'"), index=0)
    with results_folder(f"{lab.url}/glue/mine", lab.config) as folder:
        assert tree(folder) == shared


def test_the_leaderboards_pod_prints_the_table_and_keeps_it(cluster: Cluster, lab: Bucket, render):
    log = cluster.run(render("leaderboard --run=mine"))
    kept = open_storage(f"{lab.url}/leaderboard", lab.config).get("mine.md").decode()
    assert kept.strip() in log
    assert "bert-tiny" in kept


@pytest.mark.parametrize(
    ("line", "indexed"),
    [
        (f"pretrain {TINY} --train.max_steps=4 --run=lost", False),
        (f"prepare --pods=1 --flags='{PREPARE} --workers=1'", True),
        (f"glue --run=mine --pods=1 --flags='{GLUE}'", True),
        ("export --run=mine", False),
    ],
)
def test_a_bucket_that_is_not_there_ends_the_job_by_its_name(
    cluster: Cluster, render, line, indexed
):
    documents = render(line, bucket="s3://no-such-bucket-here")
    log = cluster.run(documents, index=0 if indexed else None, code=ExitCode.UNAVAILABLE)
    assert "there is no bucket 'no-such-bucket-here'" in last_line(log)
    assert verdict(documents[-1]["spec"], [Ended(ExitCode.UNAVAILABLE)]) == "counted"


def test_a_store_that_does_not_answer_is_tried_again(cluster: Cluster, render):
    documents = render("export --run=mine", endpoint="http://127.0.0.1:9")
    log = cluster.run(documents, code=ExitCode.UNAVAILABLE)
    assert "http://127.0.0.1:9" in last_line(log)
    assert verdict(documents[-1]["spec"], [Ended(ExitCode.UNAVAILABLE)]) == "counted"


def test_wrong_keys_end_the_job_and_are_not_printed(cluster: Cluster, lab: Bucket, render):
    secret = "a-secret-that-no-log-may-show"
    cluster.keep_secret(secret_of(lab.server.access_key, secret))
    try:
        documents = render(f"pretrain {TINY} --train.max_steps=4 --run=refused")
        log = cluster.run(documents, code=ExitCode.CREDENTIALS)
    finally:
        cluster.keep_secret(secret_of(lab.server.access_key, lab.server.secret_key))
    assert lab.url in last_line(log)
    assert secret not in log
    assert verdict(documents[-1]["spec"], [Ended(ExitCode.CREDENTIALS)]) == "job over"
