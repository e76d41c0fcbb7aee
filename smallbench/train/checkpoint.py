"""Checkpoints on a local disk: complete or absent, hashed, and verified before they are used.

    RUN_DIR/checkpoints/step-0000012000/attempt-0001/…   data, written beside and renamed
    RUN_DIR/commits/step-0000012000.json                 the manifest; its presence is the commit

The manifest is written last and holds the size and SHA-256 of each file, so a killed save leaves
nothing that looks like a checkpoint, and a damaged one is passed over.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smallbench.errors import DataError
from smallbench.files import (
    TEMPORARY_MARK,
    read_json,
    sha256_file,
    sync_directory,
    sync_file,
    temporary_sibling,
    write_json,
)

SCHEMA_VERSION = 1


def step_name(step: int) -> str:
    """`step-0000012000`: zero-padded, so that names sort as numbers do."""
    return f"step-{step:010d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were found to match their hashes."""

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    def load_module(self, module: nn.Module) -> None:
        """Put the saved weights into `module`; raises `RuntimeError` where they do not fit."""
        load_distinct(module, self.module_state())

    def module_state(self) -> dict[str, Tensor]:
        """The saved weights by name, on the CPU."""
        state: dict[str, Tensor] = load_file(self.directory / "module.safetensors")
        return state

    def engine_state(self) -> dict[str, Any]:
        """Optimizer and loss scale."""
        state: dict[str, Any] = torch.load(
            self.directory / "engine.pt", weights_only=True, map_location="cpu"
        )
        return state

    def restore_random_state(self) -> None:
        """Put back PyTorch's generators (dropout draws from them)."""
        states = load_file(self.directory / "random.safetensors")
        torch.set_rng_state(states["cpu"])
        if torch.cuda.is_available() and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def random_state() -> dict[str, Tensor]:
    """PyTorch's generators, as `Checkpoint.restore_random_state` takes them."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights by name, one that several parts share under its first name alone."""
    first = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    state = module.state_dict()
    return {name: state[name].contiguous() for name in first if name in state}


def load_distinct(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `distinct_state`; raises `RuntimeError` where names or shapes do not fit."""
    names = distinct_state(module).keys()
    if names != state.keys():
        raise RuntimeError(f"weights {sorted(names ^ state.keys())} are on one side only")
    module.load_state_dict(dict(state), strict=False)


class CheckpointStore:
    """The checkpoints of one run directory. One writer at a time (the run's lock sees to it)."""

    def __init__(self, run_dir: Path, *, attempt: int = 1, keep_last: int = 2) -> None:
        self._data = run_dir / "checkpoints"
        self._commits = run_dir / "commits"
        self._attempt = attempt
        self._keep_last = keep_last

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(int(p.stem.removeprefix("step-")) for p in self._commits.glob("step-*.json"))

    def save(
        self, module: nn.Module, engine_state: Mapping[str, Any], manifest: Mapping[str, Any]
    ) -> None:
        """Write and commit the checkpoint of `manifest["step"]`; then prune older ones."""
        step = int(manifest["step"])
        if step in self.steps():
            return
        final = self._data / step_name(step) / f"attempt-{self._attempt:04d}"
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(final)
        temporary.mkdir()
        save_file(distinct_state(module), temporary / "module.safetensors")
        torch.save(dict(engine_state), temporary / "engine.pt")
        save_file(random_state(), temporary / "random.safetensors")
        files = {}
        for path in sorted(temporary.iterdir()):
            sync_file(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        sync_directory(temporary)
        temporary.rename(final)
        sync_directory(final.parent)
        # The manifest last: its presence means that everything else is complete.
        directory = str(final.relative_to(self._data.parent))
        self._commits.mkdir(exist_ok=True)
        write_json(
            self._commits / f"{step_name(step)}.json",
            {
                "schema_version": SCHEMA_VERSION,
                **manifest,
                "attempt": self._attempt,
                "directory": directory,
                "files": files,
            },
        )
        self._prune()

    def newest(self, *, set_aside: bool = True) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where none was ever committed.

        A damaged one is passed over, loudly, and set aside unless the caller only reads. Raises
        `DataError` when all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            commit = self._commits / f"{step_name(step)}.json"
            try:
                return self._verified(commit)
            except DataError as error:
                if set_aside:
                    commit.rename(commit.with_suffix(".json.damaged"))
                print(f"checkpoint of step {step} is damaged and passed over: {error}",
                      file=sys.stderr)  # fmt: skip
        # Set aside by an earlier start, they are still no reason to begin again in silence.
        if steps or any(self._commits.glob("*.damaged")):
            raise DataError(
                f"every checkpoint in {self._commits} is damaged; remove the run directory to "
                "start again from the beginning"
            )
        return None

    def clean_up(self) -> None:
        """Delete what killed saves left: unfinished directories and data without a manifest."""
        committed = {step_name(step) for step in self.steps()}
        committed |= {p.name.removesuffix(".json.damaged") for p in self._commits.glob("*.damaged")}
        for directory in self._data.glob("step-*"):
            if directory.name not in committed:
                shutil.rmtree(directory)
                continue
            for unfinished in directory.glob(f"*{TEMPORARY_MARK}*"):
                shutil.rmtree(unfinished)
        for unfinished in self._commits.glob(f"*{TEMPORARY_MARK}*"):
            unfinished.unlink()

    def _verified(self, commit: Path) -> Checkpoint:
        manifest = read_json(commit)
        try:
            directory, files = self._data.parent / manifest["directory"], manifest["files"]
        except KeyError as error:
            raise DataError(f"{commit} has no {error}") from None
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                raise DataError(f"{path} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise DataError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
                )
            if sha256_file(path) != expected["sha256"]:
                raise DataError(f"{path} does not match its SHA-256")
        return Checkpoint(directory=directory, manifest=manifest)

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep_last]:
            # The manifest first: data without one is debris, a manifest without data is damage.
            (self._commits / f"{step_name(step)}.json").unlink()
            shutil.rmtree(self._data / step_name(step))
