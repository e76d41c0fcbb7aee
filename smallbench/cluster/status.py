"""Jobs and pods as lines of text: their state, why one ended, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from smallbench.cluster.config import CHAIN
from smallbench.cluster.kubectl import job_state
from smallbench.cluster.manifests import COMPONENT, Document
from smallbench.errors import ExitCode

KILLED = 137
STUCK_SECONDS = 120
"""A pod that still exists so long after its grace: the node's kubelet does not answer."""

ADVICE = {
    ExitCode.DONE: "done",
    ExitCode.CRASH: "a crash: see its log",
    ExitCode.USAGE: "wrong flags: see its log, correct them, submit again",
    ExitCode.DATA: "corpus, checkpoints or results unusable: see its log",
    ExitCode.UNAVAILABLE: "a server, disk or package was missing: it is tried again",
    ExitCode.DIVERGED: "diverged, and would again: lower the learning rate",
    ExitCode.INTERRUPTED: "saved and interrupted: the next pod goes on",
    ExitCode.CONFLICT: "another writer has the run: see who holds its lease",
    ExitCode.CREDENTIALS: "credentials refused: correct the Secret or the role, submit again",
    ExitCode.CONFIG: "a configuration that contradicts itself, the corpus or the run: see its log",
    ExitCode.SIGINT: "interrupted without a save",
    ExitCode.SIGTERM: "stopped before it could save: --grace_seconds may be too short",
    KILLED: "killed: out of memory, or longer than its grace; see the reason",
}
"""What to do about each exit code."""


def status_text(
    jobs: Sequence[Document], pods: Sequence[Document], *, is_chain: bool = False
) -> str:
    """Return a line for each Job in the chain's order and, below it, for each of its pods.

    With `is_chain` also one for each stage that is still to come.
    """
    if not jobs:
        return ""
    order = {str(stage): at for at, stage in enumerate((*CHAIN[:2], "sweep", "ablate", *CHAIN[2:]))}
    ranked = sorted(jobs, key=lambda job: (order.get(_stage(job), 9), str(job["metadata"]["name"])))
    lines = [line for job in ranked for line in _job_lines(job, pods)]
    stages = {_stage(job) for job in jobs}
    if is_chain and not {"sweep", "ablate"} & stages:
        last = max(order.get(stage, 0) for stage in stages)
        lines += [f"{stage}  not submitted" for stage in CHAIN if order[stage] > last]
    return "\n".join(lines)


def _stage(job: Document) -> str:
    return str(job["metadata"]["labels"].get(COMPONENT))


def _job_lines(job: Document, pods: Sequence[Document]) -> list[str]:
    name, status = job["metadata"]["name"], job.get("status", {})
    counts = [f"{status[key]} {key}" for key in ("active", "succeeded", "failed") if key in status]
    counts += [
        f"{label} {status[key]}"
        for key, label in (("completedIndexes", "done"), ("failedIndexes", "given up"))
        if status.get(key)
    ]
    lines = [f"{name}  {job_state(job)}  {', '.join(counts)}".rstrip()]
    for condition in status.get("conditions", ()):
        if condition["type"] == "Failed" and condition["status"] == "True":
            lines.append(f"  {condition.get('reason')}: {condition.get('message')}")
    own = [p for p in pods if p["metadata"]["labels"].get("job-name") == name]
    return lines + [
        f"  {pod['metadata']['name']}  {pod_text(pod)}"
        for pod in sorted(own, key=lambda pod: str(pod["metadata"]["name"]))
    ]


def is_stuck(pod: Document) -> bool:
    """Return whether the pod is deleted and still exists long after its grace.

    `deletionTimestamp` is the end of the grace: the API server adds it to the time of the deletion.
    """
    until = pod["metadata"].get("deletionTimestamp")
    if until is None:
        return False
    late = datetime.now(UTC) - datetime.fromisoformat(str(until))
    return late.total_seconds() > STUCK_SECONDS


def pod_text(pod: Document) -> str:
    """Return the state of a pod, and what to do about it."""
    status = pod.get("status", {})
    if is_stuck(pod):
        node, name = pod["spec"].get("nodeName", "NODE"), pod["metadata"]["name"]
        return (
            f"its node {node} does not answer, and no other pod starts before this one is gone. "
            f"When that machine is off: kubectl taint nodes {node} "
            "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or "
            f"kubectl delete pod {name} --force"
        )
    conditions = status.get("conditions", ())
    disrupted = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions)
    for container in status.get("containerStatuses", ()):
        state = container.get("state", {})
        if ended := state.get("terminated"):
            code = ended["exitCode"]
            if ended.get("reason") == "OOMKilled":
                return f"{code}: out of host memory: submit again with a larger --memory_gib"
            message = (ended.get("message") or "").strip().splitlines()
            said = f" ({message[-1]})" if message and code else ""
            why = "its node was taken away: the next pod goes on" if disrupted else ADVICE.get(code)
            return f"{code}: {why or 'see its log'}{said}"
        if waiting := state.get("waiting"):
            reason = waiting.get("reason", "waiting")
            return f"{reason}: {waiting.get('message', 'the node prepares it')}"
    for condition in conditions:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pending: {condition.get('message', condition.get('reason'))}"
    return str(status.get("phase", "unknown")).lower()
