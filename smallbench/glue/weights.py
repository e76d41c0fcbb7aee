"""The weights of a foreign encoder: read as tensors only, without wrappers of their names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallbench.errors import DataError
from smallbench.files import read_json

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""transformers' file names, in the order in which it looks for them."""

NESTS = ("state_dict", "model_state_dict", "model", "module")
"""Keys of training checkpoints under which the model's weights are stored."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of all names: DistributedDataParallel, torch.compile, and a model inside a module."""

INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of single layers: torch.compile, FSDP, activation checkpointing."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by name."""

    state: Mapping[str, Tensor]
    file: str
    """The file with the tensors, or the index of the files."""
    wrappers: tuple[str, ...] = ()
    """Wrappers that were removed, the outermost first."""

    def unwrapped(self, expected: Collection[str]) -> Weights:
        """Return the weights without known wrappers that hide the `expected` names."""

        def matches(state: Mapping[str, Tensor]) -> int:
            return sum(name in expected for name in state)

        state, removed = dict(self.state), []
        for marker in INNER_WRAPPERS:
            if any(f".{marker}" in name for name in state):
                state = {name.replace(f".{marker}", "."): tensor for name, tensor in state.items()}
                removed.append(marker)
        best, best_removed = state, list(removed)
        while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None):
            if not state:
                break
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            removed.append(prefix)
            # A class may itself call its encoder 'model', so a prefix is removed only if that
            # helps.
            if matches(state) > matches(best):
                best, best_removed = state, list(removed)
        return replace(self, state=best, wrappers=(*self.wrappers, *best_removed))


def check_values(place: str, state: Mapping[str, Tensor], numbers: Collection[str]) -> None:
    """Raise `DataError` for values that no training leaves in the weights named `numbers`."""
    for name, tensor in state.items():
        if name in numbers and tensor.dtype not in FLOATS:
            raise DataError(
                f"{place}: {name} has dtype {tensor.dtype}; expected a model in full or half "
                "precision, not a quantized one"
            )
        if tensor.dtype in FLOATS and not torch.isfinite(tensor).all():
            raise DataError(f"{place}: {name} has NaN or infinite values; the file is damaged")
    matrices = [n for n, t in state.items() if n in numbers and t.ndim > 1]
    zeros = [n for n in matrices if not n.endswith("bias") and not state[n].any()]
    if zeros and len(zeros) == len(matrices):
        raise DataError(f"{place}: all weights are zero; the file is damaged")
    if zeros:
        print(f"{place}: {len(zeros)} matrices are zero, such as {zeros[0]}", file=sys.stderr)


def find_file(model: str, name: str) -> Path | None:
    """Return a file of a directory or of a hub model, or None if it does not exist.

    Raises `DataError` if the file is only a git-lfs pointer.
    """
    from transformers.utils import cached_file

    path = Path(model, name)
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link to a file that is missing; download the model again")
    found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    with Path(found).open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"{found} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its "
                "repository"
            )
    return Path(found)


def read_weights(model: str) -> Weights:
    """Return all weights in the files of `model`, from nested dictionaries too.

    Raises `DataError` if there are none, or if a file is missing, damaged or holds objects other
    than tensors.
    """
    for name in FILES:
        index = find_file(model, name)
        if index is None:
            continue
        files = _shards(model, index) if name.endswith(".json") else [index]
        state: dict[str, Tensor] = {}
        wrappers: tuple[str, ...] = ()
        for file in files:
            content, wrappers = _unnested(_read(file), file)
            state |= content
        return Weights(state, name, wrappers)
    others = sorted(
        path.name
        for path in (Path(model).iterdir() if Path(model).is_dir() else ())
        if path.is_file()
        and path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"}
    )
    raise DataError(
        f"{model} has no weights; expected one of {', '.join(FILES)}"
        + (f", found only {', '.join(others)}" if others else "")
    )


def _shards(model: str, index: Path) -> list[Path]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise DataError(f"{index} has no weight_map; download the model again")
    names = sorted(set(map(str, mapping.values())))
    if outside := [name for name in names if name != Path(name).name]:
        raise DataError(f"{index} names {outside[0]!r}; expected names of files in its own folder")
    shards = {name: find_file(model, name) for name in names}
    if missing := [name for name, path in shards.items() if path is None]:
        raise DataError(
            f"{model} lacks {', '.join(missing[:3])}, {len(missing)} of the {len(shards)} files "
            f"that {index.name} names; download the model again"
        )
    return [path for path in shards.values() if path is not None]


def _read(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:  # weights_only: nothing in the file is executed
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{file} is damaged, or has Python objects besides its weights, which are never "
            "loaded; save only the model's state_dict(), preferably as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{file} ({file.stat().st_size:,} bytes) is damaged or truncated ({reason}); "
            "download or copy it again"
        ) from None
    if not isinstance(content, Mapping):
        raise DataError(f"{file} has a {type(content).__name__}, expected a state_dict")
    return content


def _unnested(content: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the innermost dictionary of tensors in a training checkpoint, and its keys."""
    keys: list[str] = []
    while nest := next((key for key in NESTS if isinstance(content.get(key), Mapping)), None):
        content = content[nest]
        keys.append(nest)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        known = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise DataError(
            f"{file} has {known} instead of weights; expected a state_dict, or one under a key "
            f"of {', '.join(NESTS)}"
        )
    return state, tuple(keys)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the error's type unless it is usual."""
    text = str(error).strip().partition("\n")[0]
    is_usual = isinstance(error, OSError | ValueError) and text
    return text if is_usual else f"{type(error).__name__}: {text}"
