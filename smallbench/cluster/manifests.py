"""The manifests of `k8s/`, read as `kubectl kustomize` reads them.

They are the one truth: what `kubectl apply -k` takes, and what is rendered from here. Of kustomize
this knows what the base and the components use, resources and JSON patches (RFC 6902) with a
target, and the tests compare it with kustomize itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]


def build(folder: str, documents: Sequence[Document] = ()) -> list[Document]:
    """The documents of a folder below `k8s/`; those of a component are the given ones, changed."""
    import jsonpatch

    place = Path(str(files("k8s"))) / folder
    kustomization = _read(place / "kustomization.yaml")[0]
    found = [*documents]
    for name in kustomization.get("resources", ()):
        found += _read(place / name)
    for patch in kustomization.get("patches", ()):
        operations = _read(place / patch["path"])[0]
        found = [
            jsonpatch.apply_patch(document, operations) if _is_meant(document, patch["target"])
            else document
            for document in found
        ]  # fmt: skip
    return found


def _read(path: Path) -> list[Any]:
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    # Through JSON, which has no aliases: a change of the limits must not change the requests.
    return [json.loads(json.dumps(document)) for document in documents]


def _is_meant(document: Document, target: Mapping[str, str]) -> bool:
    name = target.get("name", ".*")
    return document["kind"] == target["kind"] and bool(
        re.fullmatch(name, document["metadata"]["name"])
    )


def as_yaml(documents: Sequence[Document]) -> str:
    """One stream for `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=99)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such, and nothing said once for two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
