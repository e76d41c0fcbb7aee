"""Command lines of `smallbench k8s`, and what they render."""

from __future__ import annotations

import shlex

from smallbench.cluster import work as work_module
from smallbench.jobs.base import chosen
from smallbench.jobs.cli import resolve
from smallbench.jobs.k8s import JOB, documents_of, stages_of
from tests.cluster.kustomize import IMAGE

GIVEN = f"--image={IMAGE} --bucket=s3://lab/small"


def resolved(line: str):
    """Options and configuration of an action's command line."""
    _, options, config = resolve(*chosen(JOB, shlex.split(line)), {})
    return options, config


def work(line: str):
    """What a command line asks for, without a plan."""
    options, config = resolved(f"render {line} {GIVEN}")
    return work_module.work_of(options.stage, options, config, options.hours)


def render(line: str):
    """The documents of a command line, as they are printed."""
    options, config = resolved(line)
    stages = [documents_of(*each) for each in stages_of(options, config)]
    assert stages[-1][-1]["kind"] == "Job"
    return stages[-1]


def job_of(line: str):
    return render(f"render {line} {GIVEN}")[-1]


def args_of(job):
    return job["spec"]["template"]["spec"]["containers"][0]["args"]


LINES = {
    "prepare": "prepare --pods=3 --components=pvc --flags='--corpus=/data/text --workers=2'",
    "pretrain": "pretrain bert-small --hours=24 --optim.learning_rate=1e-3 "
    "--components=gpu-v100,spot-gke",
    "sweep": "sweep bert-small --learning_rates=1e-3,5e-4 --queue=research --pods_at_once=1",
    "ablate": "ablate --recipes=bert-tiny,deberta-tiny --gpu=none --pods_at_once=2 "
    "--flags='--flops=2e13 --seeds=1,2 --tasks=cola --train.global_batch_size=64'",
    "export": "export --run=mine",
    "glue": "glue --run=mine --pods=4 --gpu=none --flags='--tasks=cola,rte --seeds=1'",
    "leaderboard": "leaderboard --run=mine",
}
