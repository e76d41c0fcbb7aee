"""The policies in `k8s/policies` are what the whole chain needs, by Ceph's policy engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from smallbench.errors import CredentialsError
from smallbench.jobs.cli import main
from smallbench.storage import open_storage
from tests.cluster.kustomize import IMAGE, ROOT, command_of
from tests.servers.s3 import Bucket, Server, use_credentials

pytestmark = pytest.mark.s3server

KINDS = ("bucket", "role")
TINY = (
    "--sequence_length=32 --model.hidden_size=32 --model.intermediate_size=64 "
    "--model.embedding_size=16 --model.num_hidden_layers=1 --train.global_batch_size=8 "
    "--train.num_eval_rows=16 --train.save_every_steps=2 --train.max_steps=4"
)
CHAIN = {
    "prepare": "prepare --pods=1 --flags='--vocab_size=300 --sequence_length=32 "
    "--eval_fraction=0.1 --min_characters=60 --workers=1'",
    "pretrain": f"pretrain bert-tiny {TINY} --run=mine",
    "ablate": "ablate --recipes=bert-tiny,deberta-tiny --flags='--flops=6e7 --seeds=1 --glue=none "
    f"--set={TINY.removeprefix('--')}'",
    "export": "export --run=mine",
    "glue": "glue --run=mine --pods=1 --flags='--glue=samples --tasks=cola --learning_rate=1e-3 "
    "--seeds=1 --epochs=1 --max_train_examples=32'",
    "leaderboard": "leaderboard --run=mine",
}


def policy(kind: str) -> dict:
    return json.loads((ROOT / "k8s" / "policies" / f"{kind}.json").read_text())


def test_both_policies_allow_the_same():
    bucket, role = policy("bucket"), policy("role")
    for statement in bucket["Statement"]:
        del statement["Principal"]
    assert bucket == role


class Lab:
    """A bucket of one user of Ceph's, and another user who has nothing but a policy."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.owner = bucket.server
        assert self.owner.ceph_conf
        self.name = f"trainer-{bucket.name}"
        self.trainer = Server(self.owner.endpoint_url, self.name, "trainer-secret-0123456789")
        self.admin("caps", "add", "--uid=test", "--caps=user-policy=*")
        self.admin(
            "user", "create", f"--uid={self.name}", "--display-name=trainer",
            f"--access-key={self.name}", f"--secret-key={self.trainer.secret_key}",
        )  # fmt: skip

    def admin(self, *words: str) -> None:
        subprocess.run(
            ["radosgw-admin", *words],
            env={**os.environ, "CEPH_CONF": str(self.owner.ceph_conf)},
            check=True,
            capture_output=True,
        )

    def allow(self, kind: str, without: str | None = None) -> None:
        """Put the committed policy in place, but for an action."""
        content = policy(kind)
        for statement in content["Statement"]:
            if "Principal" in statement:
                statement["Principal"] = {"AWS": f"arn:aws:iam:::user/{self.name}"}
            if isinstance(statement["Action"], list):
                statement["Action"] = [a for a in statement["Action"] if a != without]
        text = json.dumps(content).replace("arn:aws:s3:::lab", f"arn:aws:s3:::{self.bucket.name}")
        if kind == "bucket":
            self.owner.client().put_bucket_policy(Bucket=self.bucket.name, Policy=text)
            return
        import boto3

        iam = boto3.client(
            "iam",
            endpoint_url=self.owner.endpoint_url,
            aws_access_key_id=self.owner.access_key,
            aws_secret_access_key=self.owner.secret_key,
            region_name="us-east-1",
        )
        iam.put_user_policy(UserName=self.name, PolicyName="trainer", PolicyDocument=text)


@pytest.fixture
def lab(ceph_bucket: Bucket) -> Iterator[Lab]:
    if ceph_bucket.server.ceph_conf is None:
        pytest.skip("SMALLBENCH_TEST_S3 names a server of which this cannot make users")
    lab = Lab(ceph_bucket)
    yield lab
    lab.admin("user", "rm", f"--uid={lab.name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_whole_chain_runs_with_exactly_these_rights(
    kind, lab: Lab, monkeypatch, capsys, tmp_path: Path
):
    """Each stage's own command line, as its pod has it."""
    client = lab.owner.client()
    for number in range(3):
        lines = [f"Document {i} of file {number}. " * (3 + i % 5) for i in range(40)]
        text = "\n\n".join(lines).encode()
        client.put_object(Bucket=lab.bucket.name, Key=f"text/{number}.txt", Body=text)
    use_credentials(lab.trainer, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", lab.owner.endpoint_url)
    monkeypatch.setenv("SMALLBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CredentialsError):
        open_storage(f"{lab.bucket.url}/runs", lab.bucket.config).check()
    lab.allow(kind)
    for stage, line in CHAIN.items():
        capsys.readouterr()
        words = f"k8s render {line} --image={IMAGE} --bucket={lab.bucket.url} --gpu=none"
        assert main(shlex.split(words)) == 0
        job = list(yaml.safe_load_all(capsys.readouterr().out))[-1]
        command = [word.replace("/scratch", str(tmp_path)) for word in command_of(job)]
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
        if stage in {"pretrain", "export", "leaderboard"}:
            monkeypatch.delenv("JOB_COMPLETION_INDEX")
        assert main(command) == 0, (stage, capsys.readouterr().err)
    with pytest.raises(CredentialsError):  # and no more than these
        open_storage(f"{lab.bucket.url}/elsewhere", lab.bucket.config).check()
    with pytest.raises(CredentialsError):
        open_storage(f"{lab.bucket.url}/text", lab.bucket.config).check()


@pytest.mark.parametrize("kind", KINDS)
def test_no_right_is_superfluous(kind, lab: Lab, monkeypatch):
    """Of what each start tries."""
    use_credentials(lab.trainer, monkeypatch)
    lab.allow(kind)
    storage = open_storage(f"{lab.bucket.url}/runs", lab.bucket.config)
    storage.check()
    # By its ACL whoever wrote an object may read it, so one of somebody else's.
    key = {"Bucket": lab.bucket.name, "Key": "runs/elses"}
    lab.owner.client().put_object(**key, Body=b"x")
    assert storage.get("elses") == b"x"
    refused = set()
    for action in ("ListBucket", "GetObject", "PutObject", "DeleteObject"):
        lab.allow(kind, without=f"s3:{action}")
        try:
            storage.check()
            storage.get("elses")
        except CredentialsError:
            refused.add(action)
    assert refused == {"ListBucket", "GetObject", "PutObject", "DeleteObject"}
