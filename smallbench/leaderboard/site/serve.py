"""Serve a built site on this machine while the command runs."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from smallbench.errors import UnavailableError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

    def end_headers(self) -> None:
        # The site may be rebuilt while a page is open.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def server(folder: Path, *, port: int) -> ThreadingHTTPServer:
    """Return a server of `folder` that is bound but does not serve yet; port 0 takes a free one.

    Raises `UnavailableError` if the port is taken.
    """
    handler = partial(_Handler, directory=str(folder))
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise UnavailableError(
            f"port {port} of {HOST} cannot be used ({error.strerror}); choose another --port"
        ) from None


def url_of(found: ThreadingHTTPServer) -> str:
    """Return its address."""
    return f"http://{HOST}:{found.server_address[1]}/"
