"""Hashes that tell encoders apart: of the weights, and of the files that say what they compute."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from smallbench.config import digest
from smallbench.files import read_json, sha256_file
from smallbench.glue.tokens import TOKENIZER_FILE
from smallbench.glue.weights import find_file

POOLER = "pooler."
"""BERT's pooler belongs to the task head: transformers initializes it at random if a checkpoint has
none, so neither the fingerprint nor the size of an encoder includes it."""

_UNUSED = {
    "config.json": ("_name_or_path", "architectures", "dtype", "id2label", "label2id",
                    "num_labels", "problem_type", "torch_dtype", "transformers_version"),
    TOKENIZER_FILE: ("padding", "truncation", "version"),
    "tokenizer_config.json": ("backend", "is_local", "local_files_only", "model_max_length",
                              "name_or_path", "special_tokens_map_file", "tokenizer_file",
                              "transformers_version"),
}  # fmt: skip
"""Keys of a model's files that do not change what is computed from its weights."""


def weights_sha256(model: torch.nn.Module) -> str:
    """Return a fingerprint of an encoder's weights, the same for every file format."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(POOLER):
            sha.update(f"{name} {tuple(tensor.shape)}".encode())
            sha.update(tensor.float().contiguous().numpy().tobytes())
    return sha.hexdigest()


def files_sha256(path: str, tokenizer: Any, *, has_code: bool) -> str:
    """Return a fingerprint of a model's configuration, tokenizer and, if it is run, code."""
    names = [*_UNUSED, "added_tokens.json", "special_tokens_map.json"]
    if find_file(path, TOKENIZER_FILE) is None:
        names += filter(None, tokenizer.vocab_files_names.values())
    found = {name: file for name in names if (file := find_file(path, name))}
    if has_code:
        found |= {file.name: file for file in found["config.json"].parent.glob("*.py")}
    content: dict[str, Any] = {name: sha256_file(file) for name, file in found.items()}
    for name in _UNUSED.keys() & found.keys():
        values = read_json(found[name]).items()
        content[name] = {key: value for key, value in values if key not in _UNUSED[name]}
    return digest(content)
