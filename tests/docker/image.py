"""The image as a user without a registry builds it: a base by debootstrap, CPUs by arguments.

How this machine reaches packages goes in as secrets: pip's configuration (folders and file://
indexes that it names are served on the loopback interface meanwhile), apt's, and the bundle of
certificates. `python tests/docker/image.py` builds, and needs nothing but Python.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
BASE, IMAGE = "smallbench-test-base", "smallbench-test"
CANARY = "smallbench-canary-7b1f"
"""In each secret, and so in no layer."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CREATED = "2026-01-02T03:04:05Z"
SOURCE = "https://git.example/smallbench"

# Debian's client, which has BuildKit built in: newer ones want a plug-in for it.
DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def docker(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A finished `docker` command, its output as text."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [DOCKER, *map(str, words)],
        **{"check": True, "capture_output": True, "text": True, **options},
    )


def build(context: Path = ROOT, tag: str = IMAGE) -> None:
    """Build the CPU image; what was built before comes from the engine's cache."""
    if not docker("images", "--quiet", BASE).stdout:
        subprocess.run(
            [ROOT / "docker" / "debian_base.sh", BASE],
            # Its `docker` is the one that is used here.
            env={**os.environ, "PATH": f"{Path(DOCKER).parent}:{os.environ['PATH']}"},
            check=True,
            stdout=sys.stderr,
        )
    proxies = os.environ.keys() & {"http_proxy", "https_proxy", "no_proxy"}
    with secrets() as files:
        # Where pip is told of folders, torch's wheel is taken to be in one of them.
        is_told = "find-links" in files["pip_conf"].read_text()
        index = "" if is_told else "https://download.pytorch.org/whl/cpu"
        docker(
            "build", context, f"--tag={tag}", "--network=host", "--progress=plain",
            f"--build-arg=BASE_IMAGE={BASE}", "--build-arg=TORCH=cpu",
            f"--build-arg=TORCH_INDEX_URL={index}", f"--build-arg=COMMIT={COMMIT}",
            f"--build-arg=CREATED={CREATED}", f"--build-arg=SOURCE={SOURCE}",
            *(f"--build-arg={name}" for name in proxies),
            *(f"--secret=id={name},src={path}" for name, path in files.items()),
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            capture_output=False, stdout=sys.stderr,
        )  # fmt: skip


@contextmanager
def secrets() -> Iterator[dict[str, Path]]:
    """Files by the ids that the Dockerfile knows, while what they name is served."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        apt = subprocess.run(
            ["apt-config", "dump", "--no-empty"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        wanted = ("Acquire::http", "Acquire::Check", "Acquire::Retries")
        files = {
            "apt_conf": [f"// {CANARY}", *(line for line in apt if line.startswith(wanted))],
            "pip_conf": [f"# {CANARY}", "[global]", *pip_settings(stack)],
            "ca_certificates": [CANARY, certificates()],
        }
        for id, lines in files.items():
            (folder / id).write_text("\n".join([*lines, ""]))
        yield {id: folder / id for id in files}


def certificates() -> str:
    """The bundle that this machine trusts."""
    paths = (os.environ.get("PIP_CERT"), ssl.get_default_verify_paths().cafile)
    return next(Path(path).read_text() for path in paths if path and Path(path).exists())


def pip_settings(stack: ExitStack) -> Iterator[str]:
    """This machine's settings of pip, as lines for containers on the host's network."""
    settings: dict[str, str] = {}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():  # files first, variables last
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'")
    yield "cert = /run/secrets/ca_certificates"
    for name in ("index-url", "timeout", "default-timeout", "trusted-host"):
        if name in settings:
            yield f"{name.removeprefix('default-')} = {settings[name]}"
    for name in ("extra-index-url", "find-links"):
        if sources := settings.get(name, "").split():
            yield f"{name} = {' '.join(served(source, stack) for source in sources)}"


def served(source: str, stack: ExitStack) -> str:
    """An address for a folder of this machine, until the stack ends; others stay as they are."""
    address = urlsplit(source)
    if address.scheme not in {"", "file"}:
        return source
    path = Path(unquote(address.path))
    # An index's links lead to its neighbours.
    handler = partial(Quiet, directory=str(path.parent))
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}/{path.name}/"


class Quiet(SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    build()
