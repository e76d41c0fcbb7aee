"""Talking to a cluster through `kubectl`, whose failures become one sentence and an exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smallbench.cluster.manifests import Document, as_yaml
from smallbench.cluster.render import COMPONENT, INSTANCE, NAME
from smallbench.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    SmallbenchError,
    UnavailableError,
)

# What kubectl says, in the order in which it is looked for → what it means for whoever types.
_FAILURES: Sequence[tuple[str, type[SmallbenchError], str]] = (
    (
        r"namespaces? \"?[\w-]+\"? not found",
        ConfigError,
        "the cluster has no namespace {namespace}; 'kubectl apply -k k8s/namespace' makes it",
    ),
    (
        r"\(Forbidden\)|is forbidden|forbidden:",
        CredentialsError,
        "the cluster forbids it to you in namespace {namespace} ({line}); ask who runs it",
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

    def kubectl(self, *arguments: str, text: str | None = None, is_shown: bool = False) -> str:
        """What kubectl prints; with `is_shown` it goes to this process's own output instead.

        Raises `UnavailableError`, `ConfigError` or `CredentialsError` in one sentence.
        """
        context = [f"--context={self.context}"] if self.context else []
        try:
            done = subprocess.run(
                ["kubectl", f"--namespace={self.namespace}", *context, *arguments],
                input=text,
                stdout=None if is_shown else subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise UnavailableError(
                "this needs kubectl, and there is none; install it "
                "(https://kubernetes.io/docs/tasks/tools), or take what 'smallbench k8s render' "
                "prints to where it is"
            ) from None
        if done.returncode:
            raise self._failure(done.stderr)
        if is_shown:
            sys.stderr.write(done.stderr)  # that there is nothing to show
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

    def submit(self, documents: Sequence[Document], *, say: Callable[[str], None] = print) -> None:
        """Create the objects; a Job of that name that has ended is replaced.

        Raises `ConflictError` where it has not ended: two of them would be two writers.
        """
        for document in documents:
            if document["kind"] != "Job":
                continue
            name = document["metadata"]["name"]
            for job in self.get("jobs", f"--field-selector=metadata.name={name}"):
                if job_state(job) not in {"Complete", "Failed"}:
                    raise ConflictError(
                        f"{name} is already there and {job_state(job).lower()}; see 'smallbench "
                        "k8s status', or end it with 'smallbench k8s cancel'"
                    )
                say(f"{name} had ended ({job_state(job)}) and goes on from the bucket")
            # Also where no Job is left: a sweep's rows outlive it, and cannot be changed.
            labels = document["metadata"]["labels"]
            selector = selector_of(labels[COMPONENT], labels[INSTANCE])
            self.kubectl("delete", "jobs,configmaps", f"--selector={selector}", "--wait=true")
        self.kubectl("apply", "--filename=-", text=as_yaml(documents))

    def objects(self, selector: str) -> tuple[list[Document], list[Document]]:
        """Jobs, and their pods."""
        return self.get("jobs", f"--selector={selector}"), self.get(
            "pods", f"--selector={selector}"
        )

    def show_logs(self, selector: str, *, follow: bool, tail: int | None) -> None:
        """Print the logs of all pods, each line with its pod's name."""
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
        """Delete the Jobs; their pods are asked to stop, and save."""
        return self.kubectl(
            "delete", "jobs,configmaps", f"--selector={selector}", "--wait=false"
        ).strip()


def selector_of(stage: str | None = None, run: str | None = None) -> str:
    """Labels of what is meant: everything of ours, a stage, a run, or a stage of a run."""
    chosen = {NAME: "smallbench", COMPONENT: stage, INSTANCE: run}
    return ",".join(f"{key}={value}" for key, value in chosen.items() if value)


def job_state(job: Document) -> str:
    """One word."""
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return str(condition["type"])
    if job["spec"].get("suspend"):
        return "Suspended"
    return "Running" if job.get("status", {}).get("active") else "Waiting"
