"""Checkpoints on a local disk: complete or absent, hashed, and verified before they are used.

    RUN_DIR/checkpoints/step-0000012000/attempt-0001/…   data, written beside and renamed
    RUN_DIR/commits/step-0000012000.json                 the manifest; its presence is the commit

The manifest is written last and holds the size and SHA-256 of each file and of itself, so a killed
save leaves nothing that looks like a checkpoint, and a damaged one is passed over. A storage holds
the same layout, see `train.remote`.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smallbench.config import digest
from smallbench.errors import DataError, UnavailableError
from smallbench.files import (
    TEMPORARY_MARK,
    read_json,
    sha256_file,
    sync_directory,
    sync_file,
    temporary_sibling,
    write_bytes,
    write_json,
)
from smallbench.train.randomness import restore_random_state
from smallbench.train.weights import load_distinct

SCHEMA_VERSION = 3
"""1 kept the optimizer's state by number instead of by name, and no hash of the manifest; 2 kept
Adam's moments alone."""

SEAL = "manifest_sha256"

METRICS = "metrics.jsonl"
"""The run's records up to the checkpoint's step, in each checkpoint: a machine with an empty disk
continues them too."""


def step_name(step: int) -> str:
    """`step-0000012000`: zero-padded, so that names sort as numbers do."""
    return f"step-{step:010d}"


def step_of(name: str) -> int:
    """The step of a commit's file name or key."""
    return int(Path(name).name.split(".")[0].removeprefix("step-"))


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest ones, those at an interval, and milestones."""

    keep_last: int = 2
    keep_every_steps: int | None = None
    milestones: tuple[int, ...] = ()

    def retained(self, steps: Iterable[int]) -> set[int]:
        """Those of `steps` that stay."""
        known = sorted(steps)
        return set(known[-self.keep_last :]) | {step for step in known if self.is_for_ever(step)}

    def is_for_ever(self, step: int) -> bool:
        """Whether a step's checkpoint stays however many come after it."""
        at_interval = self.keep_every_steps and step > 0 and step % self.keep_every_steps == 0
        return bool(at_interval) or step in self.milestones


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

    def restore_random_state(self, rank: int = 0) -> None:
        """Put back the generators of process `rank` (dropout draws from them).

        One that was not there when the checkpoint was written keeps its own.
        """
        states: dict[str, Tensor] = load_file(self.directory / "random.safetensors")
        prefix = random_prefix(rank)
        own = {n.removeprefix(prefix): s for n, s in states.items() if n.startswith(prefix)}
        if own:
            restore_random_state(own)


def random_prefix(rank: int) -> str:
    """What the names of a process's generators begin with."""
    return f"process-{rank}."


class CheckpointStore:
    """The checkpoints of one run directory. One writer at a time (the run's lock sees to it).

    `is_in_use(step)` protects checkpoints that are being uploaded from pruning.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        attempt: int = 1,
        retention: Retention | None = None,
        is_in_use: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.run_dir = run_dir
        self._data = run_dir / "checkpoints"
        self._commits = run_dir / "commits"
        self._attempt = attempt
        self._retention = retention or Retention()
        self._is_in_use = is_in_use

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(step_of(p.name) for p in self._commits.glob("step-*.json"))

    def save(
        self,
        weights: Mapping[str, Tensor],
        engine_state: Mapping[str, Any],
        random_states: Sequence[Mapping[str, Tensor]],
        manifest: Mapping[str, Any],
    ) -> Checkpoint:
        """Write and commit the checkpoint of `manifest["step"]`; then prune older ones.

        `random_states` are each process's generators. Raises `UnavailableError` where the disk is
        full, and leaves no part of it.
        """
        step = int(manifest["step"])
        if step in self.steps():
            return self._verified(self._commit(step), hashes=False)
        final = self._data / step_name(step) / f"attempt-{self._attempt:04d}"
        with self._new_directory(final) as temporary:
            save_file(dict(weights), temporary / "module.safetensors")
            with (temporary / "engine.pt").open("wb") as stream:
                torch.save(dict(engine_state), stream)
            generators = {
                random_prefix(rank) + name: state
                for rank, states in enumerate(random_states)
                for name, state in states.items()
            }
            save_file(generators, temporary / "random.safetensors")
            metrics = self.run_dir / METRICS
            if metrics.exists():
                shutil.copyfile(metrics, temporary / METRICS)
            files = {}
            for path in sorted(temporary.iterdir()):
                sync_file(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        content = sealed(
            {
                **manifest,
                "attempt": self._attempt,
                "directory": str(final.relative_to(self.run_dir)),
                "files": files,
            }
        )
        self._write_commit(step, content)
        self.prune()
        return Checkpoint(final, content)

    def adopt(self, manifest: Mapping[str, Any], fetch: Callable[[str, Path], None]) -> Checkpoint:
        """Commit here what was committed elsewhere; `fetch` writes a file of it by its name.

        Raises `DataError` where a file does not match the manifest.
        """
        check_manifest(manifest)
        step, final = int(manifest["step"]), self.run_dir / manifest["directory"]
        with self._new_directory(final) as temporary:
            for name, expected in manifest["files"].items():
                fetch(name, temporary / name)
                check_file(temporary / name, expected)
                sync_file(temporary / name)
        self._write_commit(step, manifest)
        return Checkpoint(final, manifest)

    @contextmanager
    def _new_directory(self, final: Path) -> Iterator[Path]:
        """A directory that appears at `final`, flushed, if the block ends without an error."""
        temporary = temporary_sibling(final)
        try:
            with disk_space_explained(self.run_dir):
                temporary.mkdir(parents=True)
                yield temporary
                sync_directory(temporary)
                if final.exists():  # of a commit that was damaged here, or never came about
                    shutil.rmtree(final)
                temporary.rename(final)
                sync_directory(final.parent)
                sync_directory(final.parent.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write_commit(self, step: int, content: Mapping[str, Any]) -> None:
        # The manifest last: its presence means that everything else is complete.
        with disk_space_explained(self.run_dir):
            self._commits.mkdir(parents=True, exist_ok=True)
            write_json(self._commit(step), content)

    def _commit(self, step: int) -> Path:
        return self._commits / f"{step_name(step)}.json"

    def __str__(self) -> str:
        return str(self.run_dir)

    def newest(self, *, set_aside: bool = True) -> Checkpoint | None:
        """`newest_of` this store alone."""
        return newest_of([self], set_aside=set_aside)

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step; raises `DataError` where it is damaged."""
        return self._verified(self._commit(step))

    def set_aside(self, step: int) -> None:
        """No longer count a damaged checkpoint as one; its files stay, for a closer look."""
        self._commit(step).rename(self._commit(step).with_suffix(".json.damaged"))

    def num_set_aside(self) -> int:
        """Checkpoints that were found damaged, in this or an earlier attempt."""
        return len(list(self._commits.glob("*.damaged")))

    def clean_up(self) -> None:
        """Delete what killed saves left: unfinished directories and data without a manifest."""
        committed = {step_name(step) for step in self.steps()}
        committed |= {p.name.removesuffix(".json.damaged") for p in self._commits.glob("*.damaged")}
        for directory in self._data.glob("step-*"):
            if directory.name not in committed:
                shutil.rmtree(directory)
                continue
            try:
                kept = {
                    self.run_dir / read_manifest(path)["directory"]
                    for path in self._commits.glob(f"{directory.name}.*")
                }
            except DataError:  # which of them is meant, nobody can say
                continue
            for attempt in directory.iterdir():
                if attempt not in kept:
                    shutil.rmtree(attempt)
        for folder in (self.run_dir, self._commits):
            for unfinished in folder.glob(f"*{TEMPORARY_MARK}*"):
                if unfinished.is_dir():
                    shutil.rmtree(unfinished)
                else:
                    unfinished.unlink()

    def _verified(self, commit: Path, *, hashes: bool = True) -> Checkpoint:
        manifest = read_manifest(commit)
        directory = self.run_dir / manifest["directory"]
        for name, expected in manifest["files"].items() if hashes else ():
            check_file(directory / name, expected)
        return Checkpoint(directory=directory, manifest=manifest)

    def prune(self) -> None:
        """Delete what retention does not ask for and nobody uses."""
        steps = self.steps()
        for step in sorted(set(steps) - self._retention.retained(steps)):
            if not self._is_in_use(step):
                # The manifest first: data without one is debris, a manifest without data is damage.
                self._commit(step).unlink()
                shutil.rmtree(self._data / step_name(step), ignore_errors=True)


class Place(Protocol):
    """Where checkpoints may be: a run directory, or a storage. `str` names it for people."""

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        ...

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step, verified; raises `DataError` where it is damaged."""
        ...

    def set_aside(self, step: int) -> None:
        """No longer count a damaged checkpoint as one."""
        ...

    def num_set_aside(self) -> int:
        """Checkpoints that were set aside."""
        ...


def newest_of(places: Sequence[Place], *, set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole in any place; None where there never was one.

    Of one step the first place's is taken. A damaged one is passed over, loudly, and set aside
    unless the caller only reads. Raises `DataError` when all are damaged.
    """
    steps = [set(place.steps()) for place in places]
    for step in sorted(set().union(*steps), reverse=True):
        for place, known in zip(places, steps, strict=True):
            if step not in known:
                continue
            try:
                return place.load(step)
            except DataError as error:
                if set_aside:
                    place.set_aside(step)
                print(f"checkpoint of step {step} in {place} is damaged and passed over: {error}",
                      file=sys.stderr)  # fmt: skip
    # Set aside by an earlier start, they are still no reason to begin again in silence.
    if any(steps) or any(place.num_set_aside() for place in places):
        raise DataError(
            f"every checkpoint in {' and '.join(map(str, places))} is damaged; remove the run to "
            "start again from the beginning"
        )
    return None


def restore_metrics(checkpoint: Checkpoint, path: Path) -> None:
    """The records up to the checkpoint, as it has them, in place of whatever is at `path`."""
    saved = checkpoint.directory / METRICS
    if saved.exists():
        write_bytes(path, saved.read_bytes())


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a hash of itself, in place of an earlier one."""
    content = {**manifest, "schema_version": SCHEMA_VERSION}
    content.pop(SEAL, None)
    return {**content, SEAL: digest(content)}


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest from a file; raises `DataError` as `check_manifest` does."""
    manifest = read_json(path)
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise `DataError` where a manifest is damaged, or names files outside its own directory."""
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"the manifest has schema_version {version}; this release reads {SCHEMA_VERSION}"
        )
    if sealed(manifest)[SEAL] != manifest.get(SEAL):
        raise DataError("the manifest does not match its own SHA-256")
    if missing := {"step", "directory", "files", "attempt"} - manifest.keys():
        raise DataError(f"the manifest has no {sorted(missing)[0]!r}")
    directory = str(manifest["directory"])
    if not re.fullmatch(r"checkpoints/step-\d{10,}/attempt-\d{4,}", directory):
        raise DataError(f"the manifest names {directory!r}, which is no directory of a checkpoint")
    for name in manifest["files"]:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise DataError(f"the manifest names {name!r}, which is no file of a checkpoint")


def check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise `DataError` where a file has not the size and SHA-256 that a manifest says."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    if path.stat().st_size != expected["bytes"]:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
        )
    if sha256_file(path) != expected["sha256"]:
        raise DataError(f"{path} does not match its SHA-256")


@contextmanager
def disk_space_explained(directory: Path) -> Iterator[None]:
    """One sentence where the disk is full, whichever library ran into it."""
    try:
        yield
    except Exception as error:
        # safetensors and torch say it in words of their own; their errors carry no number.
        number = getattr(error, "errno", None)
        if number not in {errno.ENOSPC, errno.EDQUOT} and "os error 28" not in str(error):
            raise
        free = shutil.disk_usage(directory).free / 2**20
        raise UnavailableError(
            f"the disk of {directory} is full ({free:,.0f} MiB free); make room for a checkpoint, "
            "then run the same command again: it continues from the last one"
        ) from None
