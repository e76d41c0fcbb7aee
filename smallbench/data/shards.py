"""Token shards on disk: `train-00000.bin`, `eval-00000.bin`, …, and `manifest.json`.

A shard is a bare array [rows, L] of little-endian ids. The manifest is written last: its presence
means that the directory is complete. It holds no time and no machine, so equal input gives equal
bytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smallbench.config import from_dict, to_dict
from smallbench.data.skips import printable
from smallbench.errors import DataError
from smallbench.files import read_json, sha256_file, sync_file, write_json
from smallbench.templates import from_template

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MEMORY_NAME = "verified.json"
"""File of a run directory: the shards that `verify_once` has verified."""
SHARD_BYTES = 512 << 20
"""A shard is closed before it grows beyond this."""

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")
_REMEDY = "run 'smallbench prepare' with this --out"


@dataclass(frozen=True)
class TokenizerInfo:
    """What training must know of the tokenizer, without loading it."""

    kind: str
    vocab_size: int
    fingerprint: str
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content and origin of a prepared directory."""

    source: str
    sequence_length: int
    dtype: str
    tokenizer: TokenizerInfo
    counts: Mapping[str, int]
    rows: Mapping[str, int]
    shards: Sequence[Shard]
    eval_unigram_entropy_nats: float | None
    """Loss of a model that knows only how frequent each token is; None without held-out rows."""
    skipped: Sequence[str]
    options: Mapping[str, Any]
    options_digest: str
    schema_version: int = SCHEMA_VERSION
    notes: Sequence[str] = ()
    """What was seen in the source that its owner may not expect, such as a guessed encoding."""

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises `DataError` if the directory is missing, unfinished or damaged."""
        path = directory / MANIFEST_NAME
        if not path.is_file():
            state = "is not a directory" if directory.exists() else "does not exist"
            state = "is not a prepared corpus, or not complete" if directory.is_dir() else state
            raise DataError(f"{directory} {state} (no {MANIFEST_NAME}); {_REMEDY}")
        return cls.parse(path.read_bytes(), place=str(directory))

    @classmethod
    def parse(cls, content: bytes, *, place: str) -> Manifest:
        """From a manifest's bytes; `place` is the directory or URL that they come from."""
        where = f"{place}/{MANIFEST_NAME}"
        try:
            data = json.loads(content)
            if data["schema_version"] != SCHEMA_VERSION:
                raise DataError(
                    f"{where} has schema {data['schema_version']}, this version reads "
                    f"{SCHEMA_VERSION}; prepare into a new directory"
                )
            manifest = from_dict(cls, data)
            _check_parts(manifest)
            return manifest
        except DataError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where} is damaged or of another version ({error}); delete {place}, {_REMEDY}"
            ) from error

    def write(self, directory: Path) -> None:
        """Complete the directory; call it after everything else is on the disk."""
        write_json(directory / MANIFEST_NAME, to_dict(self))


def _check_parts(manifest: Manifest) -> None:
    """Raise `ValueError` about a part that another part contradicts."""
    length, dtype = manifest.sequence_length, manifest.dtype
    if length < 1 or dtype not in {"<u2", "<u4"}:
        raise ValueError(f"rows of {length} tokens of type {dtype!r}")
    for shard in manifest.shards:
        if not re.fullmatch(r"(train|eval)-\d{5,}\.bin", shard.name):
            raise ValueError(f"{shard.name!r} is not the name of a shard")
        if shard.bytes != shard.rows * length * np.dtype(dtype).itemsize:
            raise ValueError(f"{shard.name} has {shard.bytes} bytes for {shard.rows} rows")
    for split in SPLITS:
        total = sum(s.rows for s in manifest.shards if s.name.startswith(f"{split}-"))
        if (rows := manifest.rows.get(split, 0)) != total:
            raise ValueError(f"{rows!r} {split} rows, but {total} in its shards")


class ShardWriter:
    """Appends rows to the shards of one split.

    `rows` is the number of committed rows: later data are truncated, so that a killed run continues
    at its last commit. Raises `DataError` if there are fewer.
    """

    def __init__(self, directory: Path, split: Split, *, row_bytes: int, rows: int = 0) -> None:
        self._directory = directory
        self._split = split
        self._row_bytes = row_bytes
        self._rows_per_shard = max(1, SHARD_BYTES // row_bytes)
        self._dirty: set[Path] = set()
        self.rows = rows
        for path in directory.glob(f"{split}-*.bin"):
            left = rows - int(path.stem.removeprefix(f"{split}-")) * self._rows_per_shard
            if left <= 0:
                path.unlink()
            elif path.stat().st_size > min(left, self._rows_per_shard) * row_bytes:
                os.truncate(path, min(left, self._rows_per_shard) * row_bytes)
        size = sum(path.stat().st_size for path in directory.glob(f"{split}-*.bin"))
        if size != rows * row_bytes:
            raise DataError(f"{directory} lost rows that it had; delete it and {_REMEDY}")

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._split}-{number:05d}.bin"

    def append(self, rows_BL: NDArray[np.unsignedinteger]) -> None:
        """Write rows after those before, into further shards as needed."""
        while len(rows_BL):
            number, filled = divmod(self.rows, self._rows_per_shard)
            part = rows_BL[: self._rows_per_shard - filled]
            with self._path(number).open("ab") as stream:
                stream.write(part.tobytes())
            self._dirty.add(self._path(number))
            self.rows += len(part)
            rows_BL = rows_BL[len(part) :]

    def commit(self) -> None:
        """Put everything appended so far on the disk."""
        for path in self._dirty:
            sync_file(path)
        self._dirty.clear()

    def shards(self) -> list[Shard]:
        """Return all files, as the manifest describes them."""
        paths = [self._path(n) for n in range(-(-self.rows // self._rows_per_shard))]
        sizes = [path.stat().st_size for path in paths]
        return [
            Shard(path.name, size // self._row_bytes, size, sha256_file(path))
            for path, size in zip(paths, sizes, strict=True)
        ]


class TokenRows:
    """The rows of one split of a prepared directory, memory-mapped.

    Raises `DataError` if the directory is missing, unfinished, of another size than its
    manifest says, or without a row in this split.
    """

    def __init__(self, directory: Path, split: Split) -> None:
        self.manifest = Manifest.read(directory)
        self.sequence_length = self.manifest.sequence_length
        self.tokenizer = self.manifest.tokenizer
        self._shards = []
        for shard in self.manifest.shards:
            if shard.name.startswith(f"{split}-"):
                verify_shard(directory, shard, hashed=False)
                rows = np.memmap(directory / shard.name, dtype=self.manifest.dtype, mode="r")
                self._shards.append(rows.reshape(shard.rows, self.sequence_length))
        if not self._shards:
            kind = {"train": "training", "eval": "held-out"}[split]
            raise DataError(
                f"{directory} has no {kind} rows; prepare more text, or increase --eval_fraction"
            )
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Rows [n, L] at `indices` [n]; raises `IndexError` outside 0 … len - 1."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"row {indices.min()} or {indices.max()} is outside 0…{len(self) - 1}")
        rows = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        shard_of = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(shard_of):
            shard, chosen = self._shards[number], shard_of == number
            rows[chosen] = shard[indices[chosen] - (self._ends[number] - len(shard))]
        return rows


def verify_shards(directory: Path) -> None:
    """Read every shard; raise `DataError` naming the first that does not match the manifest."""
    for shard in Manifest.read(directory).shards:
        verify_shard(directory, shard)


def verify_shard(directory: Path, shard: Shard, *, hashed: bool = True) -> None:
    """Read a shard, or only its size; raise `DataError` if it does not match the manifest."""
    path = directory / shard.name
    if reason := difference_of(path, shard, hashed=hashed):
        raise DataError(f"{path} {reason}; delete {directory} and {_REMEDY}")


def difference_of(path: Path, shard: Shard, *, hashed: bool = True) -> str | None:
    """Return how a file differs from a manifest's shard, or None; `hashed`: also in its content."""
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        return "is missing"
    if size != shard.bytes:
        return f"has {size} bytes, its manifest says {shard.bytes}"
    is_other = hashed and sha256_file(path) != shard.sha256
    return "does not have the SHA-256 of its manifest" if is_other else None


def verify_once(directory: Path, memory: Path) -> int:
    """Verify the shards in `directory` that `memory` does not know; return how many were read.

    `memory` has the size, modification time and inode of each shard that matched its hash. Raises
    `DataError` naming the first shard that does not match the manifest.
    """
    known: dict[str, Any] = {}
    if memory.exists():
        with suppress(DataError):  # nothing hangs on it
            known = read_json(memory)
    seen: dict[str, Any] = {}
    num_read = 0
    for shard in Manifest.read(directory).shards:
        verify_shard(directory, shard, hashed=False)
        status = (directory / shard.name).stat()
        seen[shard.name] = {
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "inode": status.st_ino,
            "sha256": shard.sha256,
        }
        if known.get(shard.name) != seen[shard.name]:
            verify_shard(directory, shard)
            num_read += 1
    if seen != known:
        write_json(memory, seen)
    return num_read


def unigram_entropy(
    paths: Sequence[Path], *, dtype: np.dtype[Any], vocab_size: int, special_ids: Sequence[int]
) -> float | None:
    """Return the entropy in nats of these tokens, without special ones; None if there are none."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for path in paths:
        tokens = np.memmap(path, dtype=dtype, mode="r")
        for start in range(0, len(tokens), 1 << 20):
            counts += np.bincount(tokens[start : start + (1 << 20)], minlength=vocab_size)
    counts[list(special_ids)] = 0
    return entropy_of_counts(counts) if counts.any() else None


def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that `counts` [V] are draws of."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


# ---- a corpus in a few lines

PAPER_VOCABULARIES = {"wordpiece": ("bert", 30_522), "bpe": ("roberta", 50_265)}
"""Kind of tokenizer → family of recipes, and the size of its public vocabulary."""
RECIPE_LENGTH = 128
"""Tokens in a row of every recipe."""
RECIPE_POSITIONS = {"tiny": 128, "small": 512}

_NUM_SHOWN = 5


def corpus_summary(manifest: Manifest, out: Path | str) -> str:
    """Return a few lines: kept and dropped documents, warnings, and the next command."""
    c, rows = manifest.counts, manifest.rows
    # The paper's recipes want the paper's vocabularies; the tiny ones take any.
    family, size = PAPER_VOCABULARIES.get(manifest.tokenizer.kind, ("bert", 0))
    kind = "small" if manifest.tokenizer.vocab_size == size else "tiny"
    length = manifest.sequence_length
    flags = "" if length == RECIPE_LENGTH else f" --sequence_length={length}"
    if length > RECIPE_POSITIONS[kind]:
        flags += f" --model.max_position_embeddings={length}"
    values = {
        "m": manifest,
        "c": c,
        "tokens_a_word": c["encoded_tokens"] / max(1, c["words"]),
        "unknown": c["unknown_tokens"] / max(1, c["encoded_tokens"]),
        "positions": (length - 2) * (rows["train"] + rows["eval"]),
        "recipe": f"{family}-{kind}",
        "flags": flags,
        "data": shlex.quote(printable(out)),
        "shown": _NUM_SHOWN,
    }
    warnings = from_template("smallbench.data", "warnings.txt", **values).splitlines()
    return from_template("smallbench.data", "summary.txt", warnings=warnings, **values).rstrip()
