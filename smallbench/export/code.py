"""An export for an architecture that transformers has no class for: its weights with its code.

The directory loads with `AutoModel.from_pretrained(DIR, trust_remote_code=True)` and does not need
this package: next to the plug-in's files lie the modules of `smallbench` that they import, under
flat names (`smallbench_models_bert.py`), since transformers follows imports like `from .x import y`
only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import smallbench
from smallbench.config import to_dict
from smallbench.errors import ConfigError
from smallbench.files import write_text
from smallbench.models import ARCHITECTURES
from smallbench.models.config import EncoderConfig
from smallbench.models.convert import FINETUNING_DROPOUT
from smallbench.plugins import plugin_of

MODEL_TYPE = "smallbench"
MODULE = "modeling_smallbench"
CLASSES = {
    "tokens": ("AutoModelForMaskedLM", "SmallbenchForMaskedLM"),
    "replaced": ("AutoModelForPreTraining", "SmallbenchForPreTraining"),
    "none": ("AutoModel", "SmallbenchModel"),
}
"""What the model was trained to predict → transformers' class to load it with, and ours."""

FIRST = ("smallbench.batch", "smallbench.models.config")
"""Modules that the template itself imports."""


def write_code(config: EncoderConfig, directory: Path) -> None:
    """Write the Python files of an export."""
    reference = config.architecture
    plugin, name = plugin_of(reference), ARCHITECTURES[reference].__name__
    place = reference.rpartition(":")[0]
    sources = dict(_sources(plugin.files))
    if place.endswith(".py"):
        sources[_stem(place)] = plugin.files[place]
        place = _stem(place)
    wanted, written = [place, type(config).__module__, *FIRST], set[str]()
    if type(config).__module__ not in sources:
        wanted[1] = place  # a file's module has another name in this process
    config_module = wanted[1]
    while wanted:
        module = wanted.pop()
        if module not in written:
            written.add(module)
            text, needed = _flattened(sources[module], module, sources)
            write_text(directory / f"{_flat(module)}.py", text)
            wanted += needed
    template = package_files(__package__).joinpath("modeling.py.txt").read_text(encoding="utf-8")
    replaced = {
        "ARCHITECTURE_MODULE": _flat(place),
        "CONFIG_MODULE": _flat(config_module),
        "ARCHITECTURE_CLASS": name,
        "CONFIG_CLASS": type(config).__name__,
    }
    for word, value in replaced.items():
        template = template.replace(word, value)
    write_text(directory / f"{MODULE}.py", template)


def config_of(config: EncoderConfig, *, head: str, pad_token_id: int) -> dict[str, Any]:
    """Return the content of `config.json`."""
    auto, own = CLASSES[head]
    names = {
        "AutoConfig": "SmallbenchConfig",
        "AutoModel": "SmallbenchModel",
        "AutoModelForSequenceClassification": "SmallbenchForSequenceClassification",
        auto: own,
    }
    return {
        "model_type": MODEL_TYPE,
        "architectures": [own],
        "auto_map": {key: f"{MODULE}.{value}" for key, value in names.items()},
        **to_dict(config),
        "hidden_dropout_prob": FINETUNING_DROPOUT,
        "attention_probs_dropout_prob": FINETUNING_DROPOUT,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": False,  # the encoder itself uses one table twice
    }


def _sources(files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    root = Path(smallbench.__file__).parent
    for path in root.rglob("*.py"):
        yield _dotted(f"smallbench/{path.relative_to(root)}"), path.read_text(encoding="utf-8")
    for name, text in files.items():
        yield _dotted(name), text


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _stem(file: str) -> str:
    return re.sub(r"\W", "_", Path(file).stem)


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _flattened(text: str, module: str, sources: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a module with imports of `sources` as relative ones, and the imported names."""
    lines, needed = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in sources:
                    raise ConfigError(
                        f"{module} line {node.lineno}: an export carries its code only if it is "
                        f"imported as 'from {alias.name} import …'"
                    )
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            package = module.split(".")[: len(module.split(".")) - node.level]
            base = ".".join([*package, *([base] if base else [])])
        if base not in sources:
            continue
        inner = [alias.name for alias in node.names if f"{base}.{alias.name}" in sources]
        if inner:
            raise ConfigError(
                f"{module} line {node.lineno}: an export carries its code only if names are "
                f"imported from the module itself: 'from {base}.{inner[0]} import …'"
            )
        needed.append(base)
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(r"from\s+\S+\s+import", f"from .{_flat(base)} import", line)
    return "".join(lines), needed
