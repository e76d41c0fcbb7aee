"""What `smallbench k8s` refuses before anything is printed, and that no credential is repeated."""

from __future__ import annotations

import json
import shlex

import pytest

from smallbench.errors import ConfigError, UsageError
from smallbench.jobs.cli import main
from tests.cluster.kustomize import IMAGE
from tests.cluster.rendering import GIVEN, LINES, render


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("render pretrain bert-small --bucket=s3://b", UsageError, "--image=NAME@sha256:DIGEST"),
        (f"render pretrain bert-small --image={IMAGE}", UsageError, "SMALLBENCH_BUCKET"),
        (
            "render export --run=a --bucket=s3://b --image=a/b:latest",
            ConfigError,
            "not pinned",
        ),
        (
            "render export --run=a --bucket=s3://b --image=b@sha256:12",
            ConfigError,
            "not pinned",
        ),
        (f"render pretrain {GIVEN}", UsageError, "needs a RECIPE"),
        (f"render prepare --pods=4 --pods_at_once=2 {GIVEN}", UsageError, "wait for each other"),
        (f"render {GIVEN}", UsageError, "STAGE is missing"),
        (f"render glue --run=a --context=c {GIVEN}", UsageError, "unknown --context"),
        ("status --bucket=s3://b", UsageError, "unknown --bucket"),
        ("logs glue --run=a --wait=false", UsageError, "unknown --wait"),
        ("logs all bert-small", UsageError, "one of prepare, pretrain"),
        ("cancel glue --run=a --follow", UsageError, "unknown --follow"),
        ("submt glue --run=a", UsageError, "did you mean 'submit'"),
        (f"render glue {GIVEN}", UsageError, "needs --run"),
        (f"render sweep bert-small {GIVEN}", UsageError, "a sweep needs"),
        (f"render sweep --learning_rates=1e-3 {GIVEN}", UsageError, "over one RECIPE"),
        (f"render ablate {GIVEN}", UsageError, "goes over --recipes, two or more"),
        (f"render ablate bert-tiny --recipes=bert-tiny,a {GIVEN}", UsageError, "over --recipes"),
        (f"render ablate --recipes=bert-tiny,bert-small {GIVEN}", UsageError, "--flops"),
        *(
            (f"render ablate --recipes={recipes} --flags='{flags}' {GIVEN}", error, message)
            for recipes, flags, error, message in (
                ("bert-tiny,brt-tiny", "--flops=1", ConfigError, "did you mean 'bert-tiny'"),
                ("bert-tiny,bert-tiny", "--flops=1", ConfigError, "given twice"),
                ("bert-tiny,bert-small", "--flop=1", UsageError, "did you mean '--flops'"),
                ("bert-tiny,bert-small", "--flops=1 --shard=1/2", UsageError, "use --pods"),
                ("bert-tiny,bert-small", "--flops=1 --variants=a,b", UsageError, "use --recipes"),
                ("bert-tiny,bert-small", "--flops=1 --train.seed=1", ConfigError, "itself"),
                ("bert-tiny,bert-small", "--flops=1 --seeds=1,1", UsageError, "none twice"),
            )
        ),
        (
            f"render ablate --recipes=bert-tiny,bert-small --hours=2 --flags=--flops=1 {GIVEN}",
            UsageError,
            "for pretrain and sweep",
        ),
        (f"render pretrain bert-small --learning_rates=1e-3 {GIVEN}", UsageError, "for sweep"),
        (f"render glue --run=a --hours=2 {GIVEN}", UsageError, "for pretrain and sweep"),
        (f"render glue --run=a --corpus_gib=2 {GIVEN}", UsageError, "for prepare and"),
        *(
            (f"render {line} {flag} {GIVEN}", UsageError, f"{flag[:6]}.* is for")
            for line in ("pretrain bert-small", "export --run=a", "leaderboard --run=a")
            for flag in ("--pods=2", "--pods_at_once=2")
        ),
        (f"render sweep bert-small --learning_rates=1 --pods=2 {GIVEN}", UsageError, "is for"),
        (f"render glue --run=a --flags=--num_shards=2 {GIVEN}", UsageError, "use --pods"),
        (f"render prepare --flags='--workers=1 --shard=2' {GIVEN}", UsageError, "use --pods"),
        (
            f"render pretrain bert-small --flags=--grace-seconds=25 {GIVEN}",
            UsageError,
            "use --grace_seconds",
        ),
        (f"render pretrain bert-small --flags=--max_hours=2 {GIVEN}", UsageError, "use --hours"),
        (f"render prepare --flags=--pods=3 {GIVEN}", UsageError, "write it outside --flags"),
        (
            f"render sweep bert-small --learning_rates=1 --flags=--tokenizer=bpe {GIVEN}",
            UsageError,
            "flags of 'smallbench pretrain'",
        ),
        (f"render glue --run=Not_A_Name {GIVEN}", UsageError, "lower-case"),
        (f"render glue --run=a --namespace='A b' {GIVEN}", UsageError, "lower-case"),
        (
            f"render glue --run=a --gpu=none --components=gpu-v100 {GIVEN}",
            ConfigError,
            "plans for a CPU",
        ),
        (f"render glue --run=a --components=spot-gke,spot-aks {GIVEN}", ConfigError, "choose one"),
        (f"render glue --run=a --components=spot {GIVEN}", UsageError, "spot-gke"),
        (f"render glue --run=a --node_selector=gpu {GIVEN}", UsageError, "KEY=VALUE"),
        (f"render glue --run=a --deadline_hours=0 {GIVEN}", UsageError, "expected > 0"),
        (f"render leaderboard --run=a --deadline_hours=2 {GIVEN}", UsageError, "is for"),
        (f"render all {GIVEN}", UsageError, "needs a RECIPE"),
        (f"render all bert-small --flags=--seeds=1 {GIVEN}", UsageError, "stage before its flags"),
        (f"render all bert-small --flags='glue --seed=1' {GIVEN}", UsageError, "--seeds"),
        (f"render all bert-small --learning_rates=1 {GIVEN}", UsageError, "for sweep"),
        (f"render glue --run=a --first=glue {GIVEN}", UsageError, "for 'all'"),
        (f"render glue --run=a --image={IMAGE} --bucket=gs://b", UsageError, "s3://BUCKET"),
        (f"render glue --run=a --image={IMAGE} --bucket=s3://", UsageError, "s3://BUCKET"),
        (f"render glue --run=a --components=gpu-h100 {GIVEN}", UsageError, "gpu-h100"),
        (f"render glue --run=a --flags=--seed=1 {GIVEN}", UsageError, "did you mean '--seeds'"),
        (f"render pretrain bert-small --train.max_step=1 {GIVEN}", UsageError, "max_steps"),
        (
            f"render pretrain bert-1.5b --gpu=rtx-2080ti --offload=none {GIVEN}",
            UsageError,
            "offload",
        ),
    ],
)
def test_impossible_configurations_are_refused(line, error, message):
    with pytest.raises(error, match=message):
        render(line)


# Made up, and split, so that no scanner takes this file for a leak.
AWS_ID, AWS_SECRET = "AKIA" + "IOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
WANDB, HUB = "0123456789" * 4, "hf_" + "abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    "line",
    [
        f"prepare --flags='--corpus=s3://b/{AWS_ID}'",
        f"prepare --flags=--cache=/scratch/secret_access_key={AWS_SECRET}",
        f"pretrain bert-small --flags=--wandb_project={WANDB}",
        f"glue --run=a --flags='--model={HUB} --tasks=cola'",
        f"glue --run=a --flags=--seeds={AWS_ID}",
        f"pretrain bert-small --endpoint_url=https://user:{AWS_SECRET}@s3.example",
    ],
)
def test_what_looks_like_a_credential_is_refused_and_not_repeated(line, capsys):
    for action in ("render", "submit"):
        assert main(["k8s", action, *shlex.split(f"{line} {GIVEN}")]) == ConfigError.exit_code
        said = "".join(capsys.readouterr())
        assert "looks like" in said
        assert "Secret" in said
        for secret in (AWS_ID, AWS_SECRET, WANDB, HUB):
            assert secret not in said


@pytest.mark.parametrize(
    "flag",
    [
        f"--image=robot:{AWS_SECRET}@registry.example/x:1",
        f"--image=robot:{AWS_SECRET}@registry.example/{IMAGE}",
        f"--bucket={AWS_ID}",
        *(
            f"--{name}={HUB}"
            for name in (
                "run",
                "queue",
                "namespace",
                "gpu",
                "node_selector",
                "region",
                "components",
            )
        ),
        f"--flags='--vocab_size={HUB}",
    ],
)
def test_no_flags_check_repeats_a_credential(flag, capsys):
    name = flag.partition("=")[0]
    others = [other for other in GIVEN.split() if not other.startswith(name)]
    assert main(["k8s", "render", "prepare", *others, flag]) == ConfigError.exit_code
    said = "".join(capsys.readouterr())
    assert "looks like" in said
    for secret in (AWS_ID, AWS_SECRET, WANDB, HUB):
        assert secret not in said


def test_credentials_of_whoever_renders_stay_out(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": AWS_ID, "AWS_SECRET_ACCESS_KEY": AWS_SECRET, "WANDB_API_KEY": WANDB,
        "HF_TOKEN": HUB,
    }.items():  # fmt: skip
        before = render(f"render {LINES['glue']} {GIVEN}")
        monkeypatch.setenv(name, value)
        assert render(f"render {LINES['glue']} {GIVEN}") == before
    text = json.dumps(render(f"render {LINES['pretrain']} {GIVEN}"))
    assert not [secret for secret in (AWS_ID, AWS_SECRET, WANDB, HUB) if secret in text]
