"""Where the C++ that DeepSpeed compiles is kept, and who compiles it.

PyTorch marks a build that is under way with a file, and a build that was killed leaves that file
behind: every later process then waits for it without end. Here one lock that dies with its holder
stands before the build, so whoever holds it knows that such a file is a dead process's. The place
belongs to the user, not to the run: an op is compiled once for an environment and a kind of CPU,
not once a run. (`-march=native` makes code that another CPU dies of, and another environment's
paths in the compiler's command are a reason for ninja to begin anew.)
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from smallbench.errors import UnavailableError, reason_of
from smallbench.files import waiting_lock
from smallbench.train.precision import cpu_flags

VARIABLE = "TORCH_EXTENSIONS_DIR"
TORCH_LOCK = "lock"  # torch.utils.cpp_extension's FileBaton


def ops_directory() -> Path:
    """`TORCH_EXTENSIONS_DIR`, or a folder of the cache for this environment and kind of CPU."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    environment = [torch.__version__, torch.__file__, sys.version, platform.machine()]
    kind = "\n".join([*environment, *sorted(cpu_flags())])
    cache = os.environ.get("SMALLBENCH_CACHE") or Path.home() / ".cache" / "smallbench"
    return Path(cache) / "torch_extensions" / hashlib.sha256(kind.encode()).hexdigest()[:16]


@contextmanager
def compiled_ops() -> Iterator[None]:
    """DeepSpeed may load its ops in this context: alone, with no dead process's lock before it."""
    directory = ops_directory()
    directory.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = str(directory)
    if not shutil.which("ninja"):  # it lies beside a Python whose environment was not activated
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    message = f"another process compiles DeepSpeed's ops in {directory}; waiting for it"
    with waiting_lock(directory / "smallbench.lock", message):
        for stale in directory.glob(f"*/{TORCH_LOCK}"):
            stale.unlink()
        yield


@contextmanager
def op_errors_explained() -> Iterator[None]:
    """Raise one sentence if DeepSpeed cannot compile an op, or cannot load what was compiled."""
    try:
        yield
    except Exception as error:
        # Anything from a missing compiler to a symbol that a shared library lacks, and DeepSpeed
        # raises whatever class it meets.
        compiler = os.environ.get("CXX", "c++")
        remedy = (
            f"delete {ops_directory()}, so that it is compiled again"
            if shutil.which(compiler)
            else f"install a C++ compiler ({compiler!r} cannot be found; CXX names another one)"
        )
        reason = reason_of(error)
        if len(reason) > 120:  # the compiler's whole command follows
            reason = f"{reason[:120]} …"
        raise UnavailableError(
            f"DeepSpeed cannot compile or load its C++ operators ({reason}); {remedy}, or train "
            "with --train.engine=torch --train.offload=none"
        ) from None
