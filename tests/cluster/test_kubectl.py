"""submit, status, logs and cancel, through the real kubectl, to a stand-in for the API server."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallbench.cluster import manifests
from smallbench.cluster.kubectl import Cluster
from smallbench.errors import ExitCode
from smallbench.jobs.cli import main
from tests.cluster.kustomize import IMAGE, KUBECTL
from tests.servers.kubernetes import Kubernetes, running

GIVEN = [f"--image={IMAGE}", "--bucket=s3://lab"]
GLUE = ["glue", "--run=mine"]
LABELS = {
    "app.kubernetes.io/name": "smallbench",
    "app.kubernetes.io/component": "glue",
    "app.kubernetes.io/instance": "mine",
    "job-name": "glue-mine",
}


@pytest.fixture(autouse=True)
def _kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The development tools' kubectl, and no cluster of whoever runs the tests."""
    monkeypatch.setenv("PATH", f"{Path(KUBECTL).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    manifests._kustomized.cache_clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with running() as state:
        monkeypatch.setenv("KUBECONFIG", str(state.kubeconfig(tmp_path / "config")))
        yield state


def k8s(capfd, *words: str) -> tuple[int, str, str]:
    """(exit code, output, error output) of `smallbench k8s …`."""
    capfd.readouterr()
    code = main(["k8s", *words])
    said = capfd.readouterr()
    return code, said.out, said.err


ACTIONS = [["submit", *GLUE, *GIVEN], ["status"], ["logs", *GLUE], ["cancel", *GLUE]]


def one_sentence(err: str) -> str:
    (line,) = err.strip().splitlines()
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("words", ACTIONS, ids=lambda words: words[0])
def test_no_kubectl(words, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for line in (words, ["render", *GLUE, *GIVEN]):
        code, out, err = k8s(capfd, *line)
        assert code == ExitCode.UNAVAILABLE
        assert "kubectl is not installed; install it" in one_sentence(err)
        assert out == ""


def test_pips_kubectl_is_found_where_the_environment_is_not_active(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = k8s(capfd, "render", *GLUE, *GIVEN)
    assert code == 0, err
    assert "glue-mine" in out


@pytest.mark.parametrize("words", ACTIONS, ids=lambda words: words[0])
def test_no_cluster_chosen(words, capfd):
    code, _, err = k8s(capfd, *words)
    assert code == ExitCode.CONFIG
    assert "kubectl has no cluster to talk to" in one_sentence(err)


def test_no_such_context(capfd, server: Kubernetes):
    code, _, err = k8s(capfd, "status", "--context=elsewhere")
    assert code == ExitCode.CONFIG
    assert "--context=NAME" in one_sentence(err)


@pytest.mark.parametrize("words", ACTIONS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "Forbidden"), "not allowed to do that in namespace"),
        ((401, "Unauthorized"), "log in"),
    ],
)
def test_forbidden_and_unknown(words, refusal, message, capfd, server: Kubernetes):
    server.refusal = refusal
    code, _, err = k8s(capfd, *words)
    assert code == ExitCode.CREDENTIALS
    assert message in one_sentence(err)
    assert "a-token-that" not in err


def test_a_cluster_that_does_not_answer(capfd, monkeypatch, tmp_path):
    gone = Kubernetes(url="http://127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", str(gone.kubeconfig(tmp_path / "config")))
    code, _, err = k8s(capfd, "status")
    assert code == ExitCode.UNAVAILABLE
    assert "does not answer" in one_sentence(err)


def test_no_namespace(capfd, server: Kubernetes):
    server.namespaces.clear()
    code, _, err = k8s(capfd, *ACTIONS[0])
    assert code == ExitCode.CONFIG
    said = one_sentence(err)
    assert "kubectl apply -k k8s/namespace" in said
    assert "--namespace" in said


def test_what_is_submitted_is_what_is_rendered(capfd, server: Kubernetes):
    code, out, err = k8s(capfd, *ACTIONS[0])
    assert code == 0, err
    assert "smallbench k8s logs glue --run=mine" in out
    job = server.objects["jobs", "glue-mine"]
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert job["metadata"]["labels"].items() <= LABELS.items()


def test_a_job_that_runs_is_not_submitted_twice_and_one_that_ended_goes_on(
    capfd, server: Kubernetes
):
    assert k8s(capfd, *ACTIONS[0])[0] == 0
    job = server.objects["jobs", "glue-mine"]
    job["status"] = {"active": 3}
    code, _, err = k8s(capfd, *ACTIONS[0])
    assert code == ExitCode.CONFLICT
    said = one_sentence(err)
    assert "already exists and is running" in said
    assert "'smallbench k8s cancel glue --run=mine'" in said
    job["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    code, out, err = k8s(capfd, *ACTIONS[0])
    assert code == 0, err
    assert "had ended (Failed) and goes on from the bucket" in out
    assert "status" not in server.objects["jobs", "glue-mine"]


def pod(name: str, **status) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "smallbench", "labels": LABELS},
        "spec": {"containers": [{"name": "smallbench"}]},
        "status": status,
    }


def ended(code: int, **more) -> list:
    return [{"name": "smallbench", "state": {"terminated": {"exitCode": code, **more}}}]


def test_status_says_why_and_what_to_do(capfd, server: Kubernetes):
    k8s(capfd, *ACTIONS[0])
    server.objects["jobs", "glue-mine"]["status"] = {
        "active": 1, "failed": 3, "completedIndexes": "0-2", "failedIndexes": "4",
    }  # fmt: skip
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu",
    }
    disruption = {"type": "DisruptionTarget", "status": "True"}
    for name, status in {
        "a": {"containerStatuses": ended(137, reason="OOMKilled")},
        "b": {"containerStatuses": ended(137), "conditions": [disruption]},
        "c": {"phase": "Pending", "conditions": [unschedulable]},
        "d": {"containerStatuses": ended(77, message="storage s3://lab: AccessDenied")},
        "e": {"containerStatuses": ended(75)},
        "f": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
        "g": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]},
    }.items():
        server.objects["pods", name] = pod(name, **status)
    code, out, _ = k8s(capfd, "status", "--run=mine")
    assert code == 0
    job, *pods, following = out.splitlines()
    assert following == "leaderboard  not submitted"
    assert job == "glue-mine  Running  1 active, 3 failed, done 0-2, given up 4"
    for line, expected in zip(
        pods,
        ("a larger --memory_gib", "taken away", "Insufficient nvidia.com/gpu", "AccessDenied",
         "the next pod goes on", "ImagePullBackOff", "running"),
        strict=True,
    ):  # fmt: skip
        assert expected in line


@pytest.mark.parametrize("action", [["status"], ["cancel", "glue"]], ids=lambda words: words[0])
def test_a_run_without_jobs_is_named_with_its_namespace(action, capfd, server: Kubernetes):
    code, out, err = k8s(capfd, *action, "--run=other")
    assert code == 0, err
    assert "No Jobs in namespace smallbench have the labels" in out
    assert "app.kubernetes.io/instance=other" in out


def test_every_exit_code_has_its_advice():
    from smallbench.cluster.status import ADVICE

    assert set(ADVICE) == {*ExitCode, 137}


def test_logs_are_each_pods_with_its_name(capfd, server: Kubernetes):
    server.logs = "step 1\nstep 2\n"
    for name in ("one", "two"):
        server.objects["pods", name] = pod(name, phase="Running")
    code, out, err = k8s(capfd, "logs", *GLUE)
    assert code == 0, err
    assert sorted(out.splitlines()) == [
        f"[pod/{name}/smallbench] step {step}" for name in ("one", "two") for step in (1, 2)
    ]


def test_commands_that_are_printed_name_the_cluster(capfd, server: Kubernetes):
    code, out, err = k8s(capfd, *ACTIONS[0], "--context=test")
    assert code == 0, err
    assert "smallbench k8s status --run=mine --context=test" in out
    assert Cluster("other", "test").flags == " --namespace=other --context=test"


def test_logs_of_a_stage_without_pods_are_an_error(capfd, server: Kubernetes):
    code, out, err = k8s(capfd, "logs", *GLUE)
    assert code == ExitCode.UNAVAILABLE
    assert "No pods in namespace smallbench" in one_sentence(err)
    assert out == ""


def test_cancel_deletes_the_runs_jobs_and_no_others(capfd, server: Kubernetes):
    for run in ("mine", "yours"):
        assert k8s(capfd, "submit", "glue", f"--run={run}", *GIVEN)[0] == 0
    code, out, err = k8s(capfd, "cancel", *GLUE)
    assert code == 0, err
    assert "glue-mine" in out
    assert [name for kind, name in server.objects if kind == "jobs"] == ["glue-yours"]


def test_cancel_of_everything_is_refused(capfd, server: Kubernetes):
    assert k8s(capfd, *ACTIONS[0])[0] == 0
    code, _, err = k8s(capfd, "cancel")
    assert code == ExitCode.USAGE
    assert "--run=ID" in one_sentence(err)
    assert ("jobs", "glue-mine") in server.objects


def test_cancel_of_a_sweep_over_recipes_ends_no_other(capfd, server: Kubernetes):
    mine, other = (
        ["sweep", "--recipes=bert-tiny", f"--learning_rates={rates}"]
        for rates in ("1e-3,2e-3", "3e-3,4e-3")
    )
    for words in (mine, other):
        code, _, err = k8s(capfd, "submit", *words, "--gpu=none", *GIVEN)
        assert code == 0, err
    assert k8s(capfd, "cancel", *mine)[0] == 0
    assert len([name for kind, name in server.objects if kind == "jobs"]) == 1


def test_an_ablation_says_how_its_tables_are_made(capfd, server: Kubernetes):
    words = ["ablate", "--recipes=bert-tiny,modern-tiny", "--flags=--flops=1e13 --seeds=1,2"]
    code, out, err = k8s(capfd, "submit", *words, "--gpu=none", *GIVEN)
    assert code == 0, err
    ((name, job),) = [(n, o) for (kind, n), o in server.objects.items() if kind == "jobs"]
    run = name.removeprefix("ablate-")
    assert f"smallbench ablate collect s3://lab/ablations/{run} --out={run}" in out
    assert job["spec"]["completions"] == 4
    assert name in k8s(capfd, "status", f"--run={run}")[1]
    assert k8s(capfd, "cancel", *words)[0] == 0
    assert ("jobs", name) not in server.objects


def test_a_sweep_whose_job_has_gone_takes_other_rows(capfd, server: Kubernetes):
    """The Job goes a week after its end; the rows, which cannot change, stay."""
    words = ["submit", "sweep", "bert-tiny", "--run=mine", "--gpu=none", *GIVEN]
    assert k8s(capfd, *words, "--learning_rates=1e-3,2e-3")[0] == 0
    del server.objects["jobs", "sweep-mine"]
    code, _, err = k8s(capfd, *words, "--learning_rates=3e-3")
    assert code == 0, err
    (row,) = server.objects["configmaps", "sweep-mine"]["data"].values()
    assert "0.003" in row


def test_a_pod_on_a_node_that_does_not_answer_is_told_from_one_that_stops(
    capfd, server: Kubernetes
):
    """Its deletion is asked for, and nobody carries it out: the Job waits for ever."""
    k8s(capfd, *ACTIONS[0])
    now = datetime.now(UTC)
    for name, grace_ends in {
        "stops": now + timedelta(seconds=30),
        "stuck": now - timedelta(hours=1),
    }.items():
        one = pod(name, phase="Running", containerStatuses=[{"state": {"running": {}}}])
        one["metadata"]["deletionTimestamp"] = grace_ends.strftime("%Y-%m-%dT%H:%M:%SZ")
        one["spec"]["nodeName"] = "node-7"
        server.objects["pods", name] = one
    _, stops, stuck = k8s(capfd, "status", "--run=mine", "glue")[1].splitlines()
    assert "does not answer" not in stops
    assert "kubectl delete pod stuck --force" in stuck
    assert "taint nodes node-7 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in stuck


# The chain

CHAIN = ["prepare-corpus", "pretrain-bert-tiny", "export-bert-tiny", "glue-bert-tiny",
         "leaderboard-bert-tiny"]  # fmt: skip
ALL = ["submit", "all", "bert-tiny", "--gpu=none", *GIVEN]


@pytest.fixture
def at_once(monkeypatch):
    """No pause between two looks at the cluster."""
    monkeypatch.setattr("smallbench.cluster.chain.POLL_SECONDS", 0.0)


def job_names(server: Kubernetes) -> list[str]:
    return [name for kind, name in server.objects if kind == "jobs"]


def finish_all(server: Kubernetes) -> None:
    """What is there is complete at the next look; at no time are two stages at work."""
    waiting = [n for n in job_names(server) if "status" not in server.objects["jobs", n]]
    assert len(waiting) <= 1
    for name in waiting:
        server.end(name)


def test_a_chain_submits_each_stage_when_the_one_before_is_complete(
    capfd, server: Kubernetes, at_once
):
    server.on_list = finish_all
    code, out, err = k8s(capfd, *ALL)
    assert code == 0, err
    assert job_names(server) == CHAIN
    assert [line for line in out.splitlines() if line.endswith("  Complete")] == [
        f"{name}  Complete" for name in CHAIN
    ]
    created = [server.objects["jobs", name]["metadata"]["creationTimestamp"] for name in CHAIN]
    assert k8s(capfd, *ALL)[0] == 0, "again: nothing is left to do"
    assert created == [
        server.objects["jobs", name]["metadata"]["creationTimestamp"] for name in CHAIN
    ]
    lines = k8s(capfd, "status", "all", "bert-tiny")[1].splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "Complete"] for name in CHAIN]


def test_a_chain_goes_on_where_it_is_and_its_status_shows_what_is_left(
    capfd, server: Kubernetes, at_once
):
    def step() -> str:
        code, out, err = k8s(capfd, *ALL, "--wait=false")
        assert code == 0, err
        return out

    assert "prepare-corpus  submitted" in step()
    assert "prepare-corpus  Waiting" in step(), "it is not submitted twice"
    server.end("prepare-corpus")
    assert "pretrain-bert-tiny  submitted" in step()
    assert job_names(server) == CHAIN[:2]
    lines = k8s(capfd, "status", "all", "bert-tiny")[1].splitlines()
    assert lines == [
        "prepare-corpus  Complete", "pretrain-bert-tiny  Waiting", "export  not submitted",
        "glue  not submitted", "leaderboard  not submitted",
    ]  # fmt: skip


def test_a_stage_that_was_repeated_repeats_what_follows(capfd, server: Kubernetes, at_once):
    server.on_list = finish_all
    assert k8s(capfd, *ALL)[0] == 0
    del server.objects["jobs", "pretrain-bert-tiny"]
    code, out, err = k8s(capfd, *ALL)
    assert code == 0, err
    assert "prepare-corpus  submitted" not in out
    assert [line for line in out.splitlines() if line.endswith("submitted")] == [
        f"{name}  submitted" for name in CHAIN[1:]
    ]


def test_a_chain_with_other_flags_does_its_stages_again(capfd, server: Kubernetes, at_once):
    server.on_list = finish_all
    assert k8s(capfd, *ALL, "--first=glue")[0] == 0
    out = k8s(capfd, *ALL, "--first=glue", "--flags=glue --tasks=cola")[1]
    assert "glue-bert-tiny  submitted" in out
    assert job_names(server) == CHAIN[3:]


def test_a_stage_that_fails_ends_the_chain_and_the_same_command_goes_on(
    capfd, server: Kubernetes, at_once
):
    def finish(state: Kubernetes) -> None:
        for name in job_names(state):
            if "status" not in state.objects["jobs", name]:
                state.end(name, "Failed" if name == "export-bert-tiny" else "Complete")

    server.on_list = finish
    code, _, err = k8s(capfd, *ALL)
    assert code == ExitCode.CRASH
    assert "export-bert-tiny failed (Made: up)" in one_sentence(err)
    assert job_names(server) == CHAIN[:3]
    server.on_list = finish_all
    code, out, _ = k8s(capfd, *ALL)
    assert code == 0
    assert "pretrain-bert-tiny  submitted" not in out
    assert "export-bert-tiny  submitted" in out


def test_a_job_of_another_command_is_not_taken_for_the_chains(capfd, server: Kubernetes):
    words = [word for word in ALL[2:] if word != "bert-tiny"]
    assert k8s(capfd, "submit", "glue", "bert-tiny", *words, "--flags=--tasks=cola")[0] == 0
    code, _, err = k8s(capfd, *ALL, "--first=glue")
    assert code == ExitCode.CONFLICT
    assert "glue-bert-tiny already exists" in one_sentence(err)


def test_a_job_that_is_deleted_meanwhile_is_said(capfd, server: Kubernetes, at_once):
    def delete(state: Kubernetes) -> None:
        for name in job_names(state):
            del state.objects["jobs", name]

    server.on_list = delete
    code, _, err = k8s(capfd, *ALL)
    assert code == ExitCode.CONFLICT
    assert "was deleted" in one_sentence(err)
