"""As much of a Kubernetes API server as kubectl needs to keep Jobs; no controller runs behind it.

No API server can be installed where these tests run. What they need of one is that the real kubectl
talks to something: objects are created, listed by label, deleted, and refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
KINDS = {
    "/api/v1": {"configmaps": "ConfigMap", "pods": "Pod"},
    "/apis/batch/v1": {"jobs": "Job"},
}


@dataclass
class Kubernetes:
    """Objects by (plural, name); `refusal` is (code, reason) for every request of an object."""

    url: str = ""
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: str = ""
    refusal: tuple[int, str] | None = None
    namespaces: set[str] = field(default_factory=lambda: {"smallbench"})
    seconds: int = 0
    """The server's clock: a second passes with each object that is created."""
    on_list: Callable[[Kubernetes], None] = lambda state: None
    """Called before Jobs are listed; what a controller would do meanwhile."""

    def time(self) -> str:
        """The server's time as the API writes it."""
        return (datetime(2026, 1, 1) + timedelta(seconds=self.seconds)).isoformat() + "Z"

    def end(self, name: str, condition: str = "Complete") -> None:
        """Let a Job end now."""
        conditions = [{"type": condition, "status": "True", "reason": "Made", "message": "up"}]
        status = {"conditions": conditions}
        if condition == "Complete":
            status["completionTime"] = self.time()
        self.objects["jobs", name]["status"] = status

    def kubeconfig(self, path: Path) -> Path:
        """A file that names this server."""
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "me"}}
        user = {"name": "me", "user": {"token": "a-token-that-no-message-may-show"}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "users": [user],
            "current-context": "test",
        }
        path.write_text(json.dumps(content))
        return path

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """A status and a document."""
        address = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        for group, kinds in KINDS.items():
            if address.path == group:
                return 200, _resources(group, kinds)
            if address.path.startswith(f"{group}/namespaces/"):
                return self._object(method, address.path.removeprefix(group), query, body, kinds)
        if address.path == "/openapi/v3":
            paths = {group[1:]: {"serverRelativeURL": f"/openapi/v3{group}"} for group in KINDS}
            return 200, {"paths": paths}
        if address.path.startswith("/openapi/v3/"):
            group = address.path.removeprefix("/openapi/v3")
            return 200, _openapi(group, KINDS[group])
        if address.path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if address.path == "/apis":
            version = {"groupVersion": "batch/v1", "version": "v1"}
            group = {"name": "batch", "versions": [version], "preferredVersion": version}
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
        if address.path == "/version":
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        return _status(404, "NotFound", "the server could not find the requested resource")

    def _object(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: dict[str, Any] | None,
        kinds: dict[str, str],
    ) -> tuple[int, Any]:
        namespace, plural, *rest = [*path.split("/")[2:], ""]
        if not plural:
            return _status(404, "NotFound", f'namespaces "{namespace}" not found')
        rest = [part for part in rest if part]
        if self.refusal:
            code, reason = self.refusal
            return _status(code, reason, f'{plural} is {reason.lower()}: User "me" cannot {method}')
        if namespace not in self.namespaces and method == "POST":
            return _status(404, "NotFound", f'namespaces "{namespace}" not found')
        kind = kinds[plural]
        if not rest and method == "POST":
            assert body is not None
            key = (plural, body["metadata"]["name"])
            self.seconds += 1
            body["metadata"] |= {
                "namespace": namespace,
                "uid": f"uid-{len(self.objects)}",
                "creationTimestamp": self.time(),
            }
            self.objects[key] = body
            return 201, body
        if not rest:
            if (plural, method) == ("jobs", "GET"):
                self.on_list(self)
            found = [o for (p, _), o in self.objects.items() if p == plural and _fits(o, query)]
            if method == "DELETE":
                for one in found:
                    del self.objects[plural, one["metadata"]["name"]]
            version = "batch/v1" if plural == "jobs" else "v1"
            return 200, {
                "kind": f"{kind}List",
                "apiVersion": version,
                "metadata": {},
                "items": found,
            }
        key = (plural, rest[0])
        if key not in self.objects:
            return _status(404, "NotFound", f'{plural} "{rest[0]}" not found')
        if rest[1:] == ["log"]:
            return 200, self.logs
        if method == "DELETE":
            return 200, self.objects.pop(key)
        return 200, self.objects[key]


def _fits(item: dict[str, Any], query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    wanted = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    if any(labels.get(key) != value for key, value in wanted):
        return False
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return not name or name == item["metadata"]["name"]


def _resources(group: str, kinds: dict[str, str]) -> dict[str, Any]:
    resources = [
        {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": VERBS}
        for plural, kind in kinds.items()
    ]
    version = group.removeprefix("/apis/").removeprefix("/api/")
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _openapi(group: str, kinds: dict[str, str]) -> dict[str, Any]:
    """Says that the server itself looks for misspelt fields, as every real one does."""
    api, version = ("", "v1") if group == "/api/v1" else ("batch", "v1")
    paths = {
        f"{group}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": api, "version": version, "kind": kind},
            }
        }
        for plural, kind in kinds.items()
    }
    return {"openapi": "3.0.0", "info": {"title": "test", "version": "1"}, "paths": paths}


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


@contextmanager
def running() -> Iterator[Kubernetes]:
    """A server that answers until the block ends."""
    state = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            code, content = state.answer(self.command, self.path, body)
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(code)
            self.send_header(
                "Content-Type", "text/plain" if isinstance(content, str) else "application/json"
            )
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = do_PATCH = _respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
