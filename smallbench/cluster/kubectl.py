"""A cluster through `kubectl`, whose failures become one sentence and an exit code."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smallbench.cluster.config import NAMESPACE
from smallbench.cluster.manifests import COMPONENT, INSTANCE, NAME, Document, run_kubectl, yaml_text
from smallbench.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    SmallbenchError,
    UnavailableError,
)

DIGEST = "smallbench/configuration"
"""Annotation of a Job: a digest of all that it was submitted with."""

# What kubectl says, the first match counts → the error and its sentence.
_FAILURES: Sequence[tuple[str, type[SmallbenchError], str]] = (
    (
        r"namespaces? \"?[\w-]+\"? not found",
        ConfigError,
        "the cluster has no namespace {namespace}; correct --namespace, or create it "
        "('kubectl apply -k k8s/namespace' creates smallbench)",
    ),
    (
        r"\(Forbidden\)|is forbidden|forbidden:",
        CredentialsError,
        "you are not allowed to do that in namespace {namespace} ({line}); ask the cluster's admin",
    ),
    (
        r"\(Unauthorized\)|Unauthorized|must be logged in|provide credentials",
        CredentialsError,
        "the cluster does not know you ({line}); log in to it again",
    ),
    (
        r"localhost:8080|current-context is not set|context \"?.*\"? does not exist"
        r"|no configuration has been provided",
        ConfigError,
        "kubectl has no cluster to talk to ({line}); choose one with "
        "'kubectl config use-context NAME', or --context=NAME",
    ),
    (
        r"Unable to connect|connection refused|was refused|i/o timeout|no such host|EOF"
        r"|ServiceUnavailable|TLS handshake",
        UnavailableError,
        "the cluster does not answer ({line}); try again later",
    ),
)


@dataclass(frozen=True)
class Cluster:
    """A namespace of the cluster that kubectl is set up for, or of `context`."""

    namespace: str
    context: str | None = None

    @property
    def flags(self) -> str:
        """Flags that name this cluster in a command of `smallbench k8s`."""
        namespace = "" if self.namespace == NAMESPACE else f" --namespace={self.namespace}"
        return namespace + (f" --context={self.context}" if self.context else "")

    def kubectl(self, *arguments: str, text: str | None = None, is_shown: bool = False) -> str:
        """Return what kubectl prints; with `is_shown` it goes to this process's own output.

        Raises `UnavailableError`, `ConfigError` or `CredentialsError` in one sentence.
        """
        context = [f"--context={self.context}"] if self.context else []
        done = run_kubectl(
            f"--namespace={self.namespace}", *context, *arguments, text=text, is_shown=is_shown
        )
        if done.returncode:
            raise self._failure(done.stderr)
        if is_shown:
            sys.stderr.write(done.stderr)
        return done.stdout or ""

    def _failure(self, said: str) -> SmallbenchError:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
        for pattern, error, sentence in _FAILURES:
            for line in lines[::-1]:
                if re.search(pattern, line):
                    return error(sentence.format(namespace=self.namespace, line=line))
        return UnavailableError(f"kubectl: {lines[-1]}")

    def get(self, *arguments: str) -> list[Document]:
        """Objects."""
        listed: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        found: list[Document] = listed["items"]
        return found

    def job(self, name: str) -> Document | None:
        """Return the Job of that name, if it exists."""
        found = self.get("jobs", f"--field-selector=metadata.name={name}")
        return found[0] if found else None

    def submit(self, documents: Sequence[Document], *, say: Callable[[str], None] = print) -> None:
        """Create the objects of a stage; a Job of that name that has ended is replaced.

        Raises `ConflictError` if it has not ended: two of them would be two writers.
        """
        job = documents[-1]
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        former = self.job(name)
        if former is not None:
            state = job_state(former)
            if state not in {"Complete", "Failed"}:
                stage, run_id = labels[COMPONENT], labels[INSTANCE]
                raise ConflictError(
                    f"{name} already exists and is {state.lower()}; wait for its end "
                    f"('smallbench k8s status --run={run_id}{self.flags}'), or end it with "
                    f"'smallbench k8s cancel {stage} --run={run_id}{self.flags}'"
                )
            say(f"{name} had ended ({state}) and goes on from the bucket")
        # Also if no Job is left: a sweep's rows outlive it, and cannot be changed.
        selector = selector_of(labels[COMPONENT], labels[INSTANCE])
        self.kubectl("delete", "jobs,configmaps", f"--selector={selector}", "--wait=true")
        annotated = {**job["metadata"], "annotations": {DIGEST: digest_of(documents)}}
        self.kubectl(
            "apply",
            "--filename=-",
            text=yaml_text([*documents[:-1], {**job, "metadata": annotated}]),
        )

    def objects(self, selector: str) -> tuple[list[Document], list[Document]]:
        """Jobs, and their pods."""
        chosen = f"--selector={selector}"
        return self.get("jobs", chosen), self.get("pods", chosen)

    def no_jobs(self, selector: str) -> str:
        """Return a sentence for a selection without Jobs."""
        return f"No Jobs in namespace {self.namespace} have the labels {selector}"

    def show_logs(self, selector: str, *, follow: bool, tail: int | None) -> None:
        """Print the logs of all pods, each line with its pod's name.

        Raises `UnavailableError` if there are no pods.
        """
        if not self.get("pods", f"--selector={selector}"):
            raise UnavailableError(
                f"No pods in namespace {self.namespace} have the labels {selector}; "
                "'smallbench k8s status' lists the Jobs that were submitted"
            )
        self.kubectl(
            "logs",
            f"--selector={selector}",
            "--prefix",
            f"--tail={-1 if tail is None else tail}",
            "--max-log-requests=100",
            *(["--follow"] if follow else []),
            is_shown=True,
        )

    def cancel(self, selector: str) -> str:
        """Delete the Jobs; their pods get SIGTERM, and save."""
        return self.kubectl(
            "delete", "jobs,configmaps", f"--selector={selector}", "--wait=false"
        ).strip()


def selector_of(stage: str | None = None, run: str | None = None) -> str:
    """Return the label selector of all our objects, a stage, a run, or a stage of a run."""
    chosen = {NAME: "smallbench", COMPONENT: stage, INSTANCE: run}
    return ",".join(f"{key}={value}" for key, value in chosen.items() if value)


def digest_of(documents: Sequence[Document]) -> str:
    """Return a digest of a stage's documents."""
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:16]


def job_state(job: Document) -> str:
    """Return Complete, Failed, Suspended, Running or Waiting."""
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return str(condition["type"])
    if job["spec"].get("suspend"):
        return "Suspended"
    return "Running" if job.get("status", {}).get("active") else "Waiting"
