"""A corpus that every machine has: the English documentation of Python and its packages.

A raw document is the source of one module; `docstrings` turns it into text. The two are apart
because parsing is slow and belongs in the workers. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_TEST_DIRECTORIES = {"test", "tests", "testing", "idle_test", "__pycache__"}


def module_sources() -> Iterator[bytes]:
    """Sources of the standard library, then of installed packages, then package descriptions.

    Sorted by path, so that one environment gives one order. A description comes as the source of
    a module with that docstring.
    """
    paths = sysconfig.get_paths()
    packages = {paths["purelib"], paths["platlib"]}
    for path in _modules(Path(paths["stdlib"]), prune={"site-packages", "dist-packages"}):
        yield path.read_bytes()
    for root in sorted(packages):
        for path in _modules(Path(root), prune=set()):
            yield path.read_bytes()
    for name, text in sorted(_descriptions(packages)):
        yield repr(f"{name}\n{text}").encode()


def docstrings(source: bytes) -> bytes:
    """Return all docstrings of a module, in the order of the file; empty if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return b""  # Python 2 or a template: a package's data file, not a module
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append((getattr(node, "lineno", 0), text))
    ordered = (text for _, text in sorted(found))
    return "\n\n".join(ordered).encode("utf-8", "surrogatepass")


def _modules(root: Path, *, prune: set[str]) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - _TEST_DIRECTORIES - prune)
        for file in sorted(files):
            if file.endswith(".py") and not file.startswith("test_"):
                path = Path(directory, file)
                if path.is_file():
                    yield path


def _descriptions(packages: set[str]) -> Iterator[tuple[str, str]]:
    for distribution in metadata.distributions(path=sorted(packages)):
        fields = distribution.metadata
        text = fields.get("Description") or str(fields.get_payload() or "")  # type: ignore[attr-defined]
        if text:
            yield fields["Name"], text
