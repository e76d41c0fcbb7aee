"""The stages of a run, each submitted when the one before it is complete.

Nothing is remembered outside the cluster: the same command goes on where the chain is, from any
machine. As in make, a stage is done if its Job is complete, was submitted with the same manifest,
and was created after the stage before it had ended. A stage that is repeated finds its work in the
bucket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from smallbench.cluster.kubectl import DIGEST, Cluster, digest_of, job_state
from smallbench.cluster.manifests import Document
from smallbench.errors import ConflictError, SmallbenchError, UnavailableError

POLL_SECONDS = 15.0
PATIENCE_SECONDS = 3600.0
"""How long a cluster that does not answer is asked again."""


def run_chain(
    cluster: Cluster,
    stages: Sequence[Sequence[Document]],
    *,
    wait: bool = True,
    say: Callable[[str], None] = print,
) -> bool:
    """Submit what is not done; return whether all stages are complete.

    Without `wait` it returns as soon as a stage is at work. Raises `ConflictError` if another Job
    has the name of a stage and has not ended, and `SmallbenchError` if a stage failed.
    """
    ended = ""
    for documents in stages:
        name = documents[-1]["metadata"]["name"]
        job = cluster.job(name)
        notes = {} if job is None else job["metadata"].get("annotations", {})
        state = None
        if job is not None and notes.get(DIGEST) == digest_of(documents):
            state = job_state(job)
        # Times as the API server writes them; texts of one form compare as times.
        if state == "Complete" and _time(job, "metadata", "creationTimestamp") >= ended:
            say(f"{name}  Complete")
            ended = _time(job, "status", "completionTime")
            continue
        if state not in {None, "Complete", "Failed"}:
            say(f"{name}  {state}")
        else:  # what runs with another manifest is refused there
            cluster.submit(documents, say=say)
            say(f"{name}  submitted")
        if not wait:
            return False
        ended = _time(_when_ended(cluster, name), "status", "completionTime")
        say(f"{name}  Complete")
    return True


def _when_ended(cluster: Cluster, name: str) -> Document:
    """Wait until the Job is complete; the cluster may be out of reach meanwhile."""
    answered = time.monotonic()
    while True:
        try:
            job = cluster.job(name)
        except UnavailableError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        else:
            answered = time.monotonic()
            if job is None:
                raise ConflictError(f"{name} was deleted while it was waited for; submit it again")
            if (state := job_state(job)) == "Complete":
                return job
            if state == "Failed":
                raise SmallbenchError(
                    f"{name} failed ({_reason(job)}); see 'smallbench k8s status', correct it and "
                    "submit the chain again: it continues with this stage"
                )
        time.sleep(POLL_SECONDS)


def _time(job: Document | None, section: str, key: str) -> str:
    return str((job or {}).get(section, {}).get(key, ""))


def _reason(job: Document) -> str:
    conditions = job.get("status", {}).get("conditions", ())
    failed: Document = next((c for c in conditions if c["type"] == "Failed"), {})
    return f"{failed.get('reason', 'unknown')}: {failed.get('message', 'no message')}"
