"""Pods of rendered Jobs, run for real: podman as the kubelet, and here what stands around it.

Of a cluster this does what Kubernetes documents of its Job controller and kubelet, and podman's
`play kube` does not: a Job's template becomes a Pod with its index and disks of its own, `$(NAME)`
in arguments the variable's value, and an image by digest the one that was loaded. All else of the
template (user, read-only root, volumes, secrets, limits) is podman's to make true.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""


@dataclass
class Cluster:
    """A node: podman, and an image that it has."""

    image: str
    folder: Path
    names: list[str] = field(default_factory=list)

    def podman(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        settings = self.folder / "containers.conf"
        settings.write_text(SETTINGS)
        done = subprocess.run(
            ["podman", *words],
            env={**os.environ, "CONTAINERS_CONF": str(settings)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def keep_secret(self, secret: Document) -> None:
        """A Secret for `secretKeyRef`, in place of one of that name.

        podman 4.3 reads a Secret's data as JSON, and its own `play kube` stores them as YAML.
        """
        name, path = secret["metadata"]["name"], self.folder / "secret.json"
        path.write_text(json.dumps(secret["data"]))
        self.podman("secret", "rm", name, check=False)
        self.podman("secret", "create", name, str(path))
        path.unlink()

    def start(self, documents: list[Document], *, index: int | None = None) -> str:
        """A pod of the Job among `documents`; the name of its container."""
        *others, job = documents
        pod = pod_of(job, image=self.image, index=index, number=len(self.names))
        self.names.append(pod["metadata"]["name"])
        maps = [f"--configmap={self._file([other])}" for other in others]
        # The loopback interface is where the tests' store is.
        self.podman("play", "kube", "--network=host", *maps, self._file([pod]))
        return f"{pod['metadata']['name']}-smallbench"

    def wait(self, container: str, timeout: float = 900) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout
        while (state := self.state(container))["Status"] in {"created", "running", "initialized"}:
            assert time.monotonic() < deadline, self.logs(container)
            time.sleep(0.5)
        return int(state["ExitCode"])

    def run(self, documents: list[Document], *, index: int | None = None, code: int = 0) -> str:
        """A pod to its end; its log."""
        container = self.start(documents, index=index)
        ended = self.wait(container)
        log = self.logs(container)
        assert ended == code, log
        return log

    def terminate(self, container: str, grace_seconds: int) -> None:
        """What the kubelet does to a pod that is deleted."""
        self.podman("stop", f"--time={grace_seconds}", container)

    def state(self, container: str) -> dict[str, Any]:
        return dict(self.inspect(container)["State"])

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(json.loads(self.podman("inspect", container).stdout)[0])

    def logs(self, container: str) -> str:
        done = self.podman("logs", container)
        return done.stdout + done.stderr

    def clean(self) -> None:
        for name in self.names:
            self.podman("pod", "rm", "--force", "--time=0", name, check=False)
            self.podman("volume", "rm", f"scratch-{name}", f"shm-{name}", check=False)

    def _file(self, documents: list[Document]) -> str:
        with tempfile.NamedTemporaryFile(
            "w", suffix=".yaml", dir=self.folder, delete=False
        ) as stream:
            yaml.safe_dump_all(documents, stream)
        return stream.name


def pod_of(job: Document, *, image: str, index: int | None = None, number: int = 0) -> Document:
    """The Pod that the Job controller makes of a template, with the kubelet's arguments."""
    template = copy.deepcopy(job["spec"]["template"])
    name = f"{job['metadata']['name']}-{'' if index is None else f'{index}-'}{number:05d}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name},
        "spec": template["spec"],
    }
    (container,) = pod["spec"]["containers"]
    if index is not None:
        container["env"].append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})
    values = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    container["args"] = [
        re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), argument)
        for argument in container["args"]
    ]
    container["image"], container["imagePullPolicy"] = image, "Never"
    # An emptyDir is its pod's own; podman makes it a volume of that name, which the next pod finds.
    for place in (*pod["spec"]["volumes"], *container["volumeMounts"]):
        if place["name"] in {"scratch", "shm"}:
            place["name"] += f"-{name}"
    # A uid of the API server's making, which podman has none of.
    for variable in container["env"]:
        if variable["name"] == "POD_UID":
            del variable["valueFrom"]
            variable["value"] = f"uid-of-{name}"
    return pod
