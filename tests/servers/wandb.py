"""What of W&B's server its client needs, so that the client's real service can be watched.

It keeps the rows, the summary and the files' names that arrive, answers how far a run has come, and
can press the Stop button. (W&B's own server is a large closed image.)
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e1", "name": "me"}


class WandbServer:
    """A context with `url`; `runs` holds by id what arrived: `rows`, `summary`, `config`, …"""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.stop_pressed = False
        self.num_requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                owner.num_requests += 1
                content = self._content()
                if self.path == "/graphql":
                    self._answer({"data": owner.graphql(json.loads(content))})
                elif found := re.fullmatch(r"/files/\w+/\w+/(\w+)/file_stream", self.path):
                    owner.stream(found[1], json.loads(content))
                    self._answer({"limits": {}, "stopped": owner.stop_pressed})
                else:
                    self._answer({})

            def do_PUT(self) -> None:
                self._content()
                self._answer({})

            def _content(self) -> bytes:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                return gzip.decompress(content) if zipped else content

            def _answer(self, answer: object) -> None:
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation) (\w+)", request["query"])[1]
        values = request.get("variables") or {}
        project = {"id": "p1", "name": values.get("project"), "entity": ENTITY}
        if name == "RunResumeStatus":
            run = self.runs.get(values["name"])
            return {"model": {**project, "bucket": run and bucket(values["name"], run)}}
        if name == "UpsertBucket":
            is_new = values["name"] not in self.runs
            run = self.runs.setdefault(values["name"], {"rows": [], "num_lines": 0, "summary": {}})
            run.update({key: value for key, value in values.items() if value is not None})
            found = {**bucket(values["name"], run), "project": project}
            return {"upsertBucket": {"bucket": found, "inserted": is_new}}
        if name == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/upload"} for n in values["files"]]
            return {"createRunFiles": {"runID": "r1", "uploadHeaders": [], "files": files}}
        if name in {"Viewer", "GetDefaultEntity"}:
            viewer = {"id": "u1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if name == "UpsertView2":
            self.views.append(values)
            return {"upsertView": {"view": {"id": "v1", "name": values["name"]}, "inserted": True}}
        return {}

    def stream(self, run_id: str, content: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, part in content.get("files", {}).items():
            if name == "wandb-history.jsonl":
                assert part["offset"] == run["num_lines"], "lines are appended"
                run["num_lines"] += len(part["content"])
                for row in map(json.loads, part["content"]):
                    if row["_step"] > (run["rows"][-1]["_step"] if run["rows"] else -1):
                        run["rows"].append(row)  # W&B drops what is logged behind its own step
            elif name == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])
        if content.get("complete"):
            run["exit_code"] = content["exitcode"]
        run["preempting"] = run.get("preempting", False) or content.get("preempting", False)


def bucket(run_id: str, run: dict[str, Any]) -> dict[str, Any]:
    """A run as the client asks for it."""
    return {
        "id": "r1",
        "name": run_id,
        "displayName": run_id,
        "config": run.get("config", "{}"),
        "summaryMetrics": json.dumps(run["summary"]),
        "historyLineCount": run["num_lines"],
        "historyTail": json.dumps([json.dumps(row) for row in run["rows"][-1:]]),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "wandbConfig": json.dumps({"t": 1}),  # the sign of a run that has begun
        "tags": [],
    }
