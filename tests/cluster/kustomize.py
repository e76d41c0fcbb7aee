"""`kubectl kustomize`, and documents by their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
KUBECTL = str(Path(sys.executable).with_name("kubectl"))  # of the development tools

STAGES = ("prepare", "pretrain", "sweep", "ablate", "export", "glue", "leaderboard")
INDEXED = ("prepare", "sweep", "ablate", "glue")
ON_GPU = ("pretrain", "sweep", "ablate", "glue")
TRAINS = ("pretrain", "sweep", "ablate")
IMAGE = f"registry.example/smallbench@sha256:{'0123456789abcdef' * 4}"


def kustomize(folder: Path | str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [KUBECTL, "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def by_name(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    assert len(found) == len(documents)
    return found


def command_of(job: dict[str, Any], index: str = "0") -> list[str]:
    """A pod's arguments as the kubelet expands them."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    words = list(container["args"])
    for name, value in {**values, "JOB_COMPLETION_INDEX": index}.items():
        words = [word.replace(f"$({name})", value) for word in words]
    assert "$(" not in " ".join(words)
    return words


def jobs(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The Jobs by their stage."""
    return {
        d["metadata"]["labels"]["app.kubernetes.io/component"]: d
        for d in documents
        if d["kind"] == "Job"
    }
