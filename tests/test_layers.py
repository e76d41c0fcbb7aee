"""Imports go down only: a reader follows the data one way and never has to turn back.

Read from the source, so that imports inside functions and the targets of registries count too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first; who stands on one line does not import each other.
LAYERS = [
    {"smallbench.errors"},
    {"smallbench.plugins", "smallbench.retry"},
    {"smallbench.registry"},
    {
        f"smallbench.{name}"
        for name in (
            "config",
            "batch",
            "cores",
            "estimate",
            "files",
            "gpus",
            "stop",
            "templates",
            "unusable_gpu",
        )
    },
    {"smallbench.tracking", "smallbench.storage", "smallbench.sharding"},
    {"smallbench.checkpoints", "smallbench.data", "smallbench.models"},
    {"smallbench.objectives"},
    {"smallbench.train"},
    {"smallbench.planning"},
    {"smallbench.pretraining"},
    {"smallbench.export", "smallbench.glue", "smallbench.report"},
    {"smallbench.leaderboard"},
    {"smallbench.recipes"},
    {"smallbench.ablation", "smallbench.cluster"},
    {"jobs"},
]

ONLY_IN = {
    "fire": "jobs.resolve",
    "boto3": "smallbench.storage.s3",
    "botocore": "smallbench.storage.s3",
    "wandb": "smallbench.tracking.wandb",
    "deepspeed": "smallbench.train.deepspeed_engine",
    "pynvml": "smallbench.pretraining.usage",
    "codecarbon": "smallbench.pretraining.usage",
    "wandb_workspaces": "smallbench.tracking.dashboard",
    "tensorboardX": "smallbench.report.tensorboard",
}

COMMAND_LINE = ("jobs.base", "jobs.resolve", "jobs.manual", "jobs.cli")
"""What a job may import of `jobs`."""

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "pyarrow", "matplotlib", "fire")

ROW = re.compile(r"((?:smallbench|jobs)(?:\.\w+)+):\w+")  # a registry's "package.module:attribute"


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    paths = [p for top in ("smallbench", "jobs") for p in (ROOT / top).rglob("*.py")]
    return {module_name(path.relative_to(ROOT)): path for path in paths}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it; `from a import b` gives `a.b`.

    `smallbench.jobs` is a link to the folder `jobs`, and named like it.
    """
    for name in _imports(source, module, is_package=is_package):
        yield (
            name.removeprefix("smallbench.") if f"{name}.".startswith("smallbench.jobs.") else name
        )


def _imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = parts[: len(parts) - node.level + is_package]
                base = ".".join([*up, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and (row := ROW.fullmatch(str(node.value))):
            yield row[1]


def layer_of(name: str) -> tuple[int, str] | None:
    """Height and package of a dotted name; None for what is no part of the project."""
    for height, layer in enumerate(LAYERS):
        for package in layer:
            if name == package or name.startswith(f"{package}."):
                return height, package
    return None


def configures(name: str) -> bool:
    """Whether a recipe may import it: configuration classes, and the modules below all others."""
    return (
        name.startswith(("smallbench.recipes", "smallbench.registry", "smallbench.errors"))
        or ".config." in f"{name}."
    )


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Sentences about the imports of a module that the rules forbid."""
    found = []
    own = layer_of(module)
    for name in imports(source, module, is_package=is_package):
        owner = ONLY_IN.get(name.partition(".")[0])
        if owner and not module.startswith(owner):
            found.append(f"{module} imports {name}; only {owner} may")
        target = layer_of(name)
        if target is None:
            continue
        if own is None:  # smallbench/__init__.py
            found.append(f"{module} imports {name}; it imports nothing")
        elif target[1] != own[1] and target[0] >= own[0]:
            found.append(f"{module} imports {name}, which is not below it")
        elif own[1] == "jobs" and target[1] == "jobs":
            if module != name and not name.startswith(COMMAND_LINE):
                found.append(f"{module} imports {name}; a job imports no other job")
        elif own[1] == "smallbench.recipes" and not configures(name):
            found.append(f"{module} imports {name}; recipes import configurations only")
    return found


def test_no_module_of_the_package_imports_a_top_level_jobs() -> None:
    """It is not installed: there, a user may have a package of that name."""
    found = [
        name
        for name, path in modules().items()
        if re.search(r"^\s*(from|import) (jobs|k8s)\b", path.read_text(), re.MULTILINE)
    ]
    assert found == []


def test_every_package_has_its_place() -> None:
    homeless = [m for m in modules() if layer_of(m) is None and m != "smallbench"]
    assert homeless == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_only(module: str) -> None:
    path = modules()[module]
    found = violations(path.read_text(), module, is_package=path.name == "__init__.py")
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("smallbench.errors", "import smallbench.config"),
        ("smallbench.registry", "from smallbench import config"),
        ("smallbench.batch", "from smallbench.config import option"),
        ("smallbench.storage.local", "from smallbench.tracking.base import Tracker"),
        ("smallbench.data.shards", "from smallbench.models import bert"),
        ("smallbench.models.bert", "from ..train import precision"),
        ("smallbench.models.bert", "from .. import train"),
        ("smallbench.models", "ROWS = {'x': 'smallbench.train.optim:build'}"),
        ("smallbench.train.trainer", "def late():\n    from smallbench.glue import tasks"),
        ("smallbench.glue.tasks", "import smallbench.export.card"),
        ("smallbench.models.convert", "import smallbench.jobs.cli"),
        ("smallbench.recipes.bert", "from smallbench.models.bert import Bert"),
        ("smallbench.recipes.bert", "from smallbench.train import optim"),
        ("jobs.quickstart", "from smallbench.jobs import prepare"),
        ("jobs.quickstart", "from smallbench.jobs.prepare import run"),
        ("jobs.cli", "from smallbench.jobs import prepare"),
        ("jobs.prepare", "import fire"),
        ("smallbench.checkpoints.store", "import boto3"),
        ("smallbench.storage.s3", "import wandb.sdk"),
        ("smallbench", "from smallbench.config import option"),
    ],
)
def test_the_check_itself_finds_a_violation(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("smallbench.train.trainer", "from smallbench.objectives.base import Objective"),
        ("smallbench.train.trainer", "from .optim import build\nfrom . import schedule"),
        ("smallbench.models", "ROWS = {'x': 'smallbench.models.bert:Bert'}"),
        ("smallbench.recipes.bert", "from smallbench.models.config import BertConfig"),
        ("smallbench.recipes.bert", "from smallbench.train import config"),
        (
            "jobs.quickstart",
            "from smallbench.jobs.base import Job\nfrom smallbench.jobs.cli import main",
        ),
        ("jobs.resolve", "import fire\nimport smallbench"),
        ("smallbench.storage.s3", "import boto3"),
    ],
)
def test_the_check_allows_imports_of_lower_layers(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_no_file_has_over_450_lines_and_no_function_over_60() -> None:
    for path in modules().values():
        source = path.read_text()
        assert source.count("\n") <= 450, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def import_without(blocked: tuple[str, ...], names: list[str]) -> None:
    """Import `names` in a fresh interpreter in which the `blocked` packages cannot be imported."""
    program = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_leaderboard_is_built_without_heavy_packages() -> None:
    needed = ["tasks", "readers", "metrics", "results"]
    names = [m for m in modules() if m.startswith("smallbench.leaderboard")]
    assert names
    names += [m for m in modules() if m.removeprefix("smallbench.glue.") in needed]
    import_without(HEAVY, sorted(names))


def test_a_report_is_drawn_without_heavy_packages() -> None:
    import_without(HEAVY, sorted(m for m in modules() if m.startswith("smallbench.report")))


def test_recipes_and_configurations_are_read_without_heavy_packages() -> None:
    names = [m for m in modules() if m.startswith("smallbench.recipes") or m.endswith(".config")]
    import_without((*HEAVY, "numpy", "sklearn", "scipy"), sorted(names))


def test_jobs_are_listed_and_explained_without_heavy_packages() -> None:
    names = [f"smallbench.{m}" for m in modules() if m.startswith("jobs")]
    import_without((*HEAVY, "numpy", "sklearn", "scipy"), sorted(names))


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="blocked: torch"):
        import_without(("torch",), ["smallbench.train.precision"])
