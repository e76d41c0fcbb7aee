"""Checkpoints in a run directory or in a storage: complete or absent, hashed, verified before use.

    checkpoints/step-0000012000/attempt-0001/…   data, below the attempt that wrote it
    commits/step-0000012000.json                 the manifest; its presence is the commit
    damaged/step-0000012000.json                 a manifest whose data do not match it

The manifest is written last and has the size and SHA-256 of each file and of itself, so a killed
save leaves nothing that looks like a checkpoint. One class serves both, since a run directory is a
storage too. A file that cannot be read is not damaged: `UnavailableError` passes through.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smallbench.checkpoints.manifest import (
    METRICS,
    DamagedError,
    OtherVersionError,
    attempt_name,
    check_file,
    parse_manifest,
    sealed,
    step_name,
    step_of,
)
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.state import load_distinct, restore_random_state
from smallbench.checkpoints.tensor_file import save_tensors
from smallbench.errors import ConfigError, ConflictError, DataError, UnavailableError
from smallbench.files import atomic_directory, sha256_file, write_bytes
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Storage, Stored, put_json
from smallbench.storage.local import UNFINISHED, LocalStorage

FILES_AT_ONCE = 2
"""Concurrent uploads: one sends its parts while the other waits for an answer."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on the local disk, verified against its hashes."""

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    def load_module(self, module: nn.Module) -> None:
        """Load the weights into `module`; raise `RuntimeError` if they do not fit."""
        load_distinct(module, self.module_state())

    def module_state(self) -> dict[str, Tensor]:
        """Return the weights by name, on the CPU."""
        state: dict[str, Tensor] = load_file(self.directory / "module.safetensors")
        return state

    def engine_state(self) -> dict[str, Any]:
        """Return optimizer and loss scale."""
        state: dict[str, Any] = torch.load(
            # Mapped, not read: the caller makes the only copy.
            self.directory / "engine.pt",
            weights_only=True,
            map_location="cpu",
            mmap=True,
        )
        return state

    def restore_random_state(self, rank: int = 0) -> None:
        """Restore the generators of process `rank`, from which dropout draws.

        A process that did not exist at the checkpoint keeps its own.
        """
        states: dict[str, Tensor] = load_file(self.directory / "random.safetensors")
        prefix = random_prefix(rank)
        own = {n.removeprefix(prefix): s for n, s in states.items() if n.startswith(prefix)}
        if own:
            restore_random_state(own)


def random_prefix(rank: int) -> str:
    """Return the prefix of the names of a process's generators."""
    return f"process-{rank}."


class CheckpointStore:
    """The checkpoints below a run directory (a `Path`) or a storage's URL.

    One process writes at a time: `assert_owned` raises `ConflictError` if another process owns the
    run, and is called before every commit and every deletion of uncommitted data (a run directory
    has a lock instead). `is_in_use(step)` protects checkpoints from pruning.
    """

    def __init__(
        self,
        place: Path | Storage,
        *,
        attempt: int = 1,
        retention: Retention | None = None,
        is_in_use: Callable[[int], bool] = lambda step: False,
        assert_owned: Callable[[], None] = lambda: None,
    ) -> None:
        self.storage = LocalStorage(place) if isinstance(place, Path) else place
        local = self.storage.root if isinstance(self.storage, LocalStorage) else None
        self._directory = place if isinstance(place, Path) else local
        self._is_run_dir = isinstance(place, Path)
        self._attempt = attempt
        self._retention = retention or Retention()
        self._is_in_use = is_in_use
        self._assert_owned = assert_owned
        self._uploaded: set[str] = set()
        """Keys that this process has uploaded; objects of earlier ones may be damaged."""

    def __str__(self) -> str:
        return str(self._directory or self.storage.url)

    @property
    def run_dir(self) -> Path:
        """The run directory; only of a store that was opened with one."""
        assert self._directory is not None, f"{self} is not a run directory"
        return self._directory

    # In both places

    def steps(self) -> list[int]:
        """Return the committed steps, oldest first."""
        return sorted(self.commits())

    def require(self, *steps: int) -> None:
        """Raise `ConfigError` if one of `steps` is not committed."""
        kept = self.steps()
        for step in steps:
            if step not in kept:
                known = ", ".join(f"{other:,}" for other in kept) or "none"
                raise ConfigError(
                    f"{self} has no checkpoint of step {step:,}; it kept: {known}. "
                    "--train.milestones=1000,2000 keeps chosen steps permanently"
                )

    def commits(self) -> dict[int, Stored]:
        """Return the objects of the manifests, by step."""
        found = self.storage.list("commits/step-")
        is_commit = re.compile(r"commits/step-\d+\.json").fullmatch
        return {step_of(stored.key): stored for stored in found if is_commit(stored.key)}

    def manifest(self, step: int) -> dict[str, Any]:
        """Return a step's manifest; raise as `check_manifest` does, `NotFoundError` if pruned."""
        return self._manifest(_commit(step))

    def _manifest(self, key: str) -> dict[str, Any]:
        return parse_manifest(self.storage.get(key), f"{self}/{key}")

    def refuse_other_versions(self) -> None:
        """Raise `OtherVersionError` if another release wrote one of the checkpoints."""
        for step in self.steps():
            try:
                self.manifest(step)
            except (DamagedError, NotFoundError):
                continue

    def verify(self, step: int) -> None:
        """Read every file of a checkpoint; raise `DamagedError` naming what does not match."""
        manifest = self.manifest(step)
        for name, expected in manifest["files"].items():
            if self._directory:
                check_file(self._directory / manifest["directory"] / name, expected)
                continue
            with tempfile.TemporaryDirectory(prefix="smallbench-verify-") as folder:
                self._fetch(manifest, name, Path(folder) / name)

    def _fetch(self, manifest: Mapping[str, Any], name: str, path: Path) -> None:
        """Download a file of a checkpoint; retry once if it does not match its hash.

        Otherwise a network error would count as damage of the checkpoint.
        """
        key = f"{manifest['directory']}/{name}"
        for is_last in (False, True):
            try:
                self.storage.download(key, path)
                check_file(path, manifest["files"][name])
                return
            except NotFoundError:
                raise DamagedError(f"{self}/{key} is missing") from None
            except DamagedError as error:
                if is_last:
                    raise DamagedError(
                        f"{self}/{key} does not match its manifest ({error})"
                    ) from None

    def quarantine(self, step: int) -> None:
        """Remove the commit of a damaged checkpoint; its files are kept for inspection."""
        try:
            content = self.storage.get(_commit(step))
        except NotFoundError:  # pruned in the meantime
            return
        self.storage.put(f"damaged/{step_name(step)}.json", content)
        self.storage.delete([_commit(step)])

    def quarantined(self) -> list[str]:
        """Return the keys of quarantined manifests, of this or an earlier attempt."""
        return [stored.key for stored in self.storage.list("damaged/step-")]

    def prune(self, *retentions: Retention) -> list[int]:
        """Delete unused checkpoints that retention does not keep; return their steps."""
        steps = self.steps()
        asked = (self._retention, *retentions)
        kept = set().union(*(retention.retained(steps) for retention in asked))
        doomed = [step for step in steps if step not in kept and not self._is_in_use(step)]
        for step in doomed:
            # The manifest first: data without one are debris, a manifest without data is damage.
            self.storage.delete([_commit(step)])
            data = self.storage.list(f"checkpoints/{step_name(step)}/")
            self.storage.delete([stored.key for stored in data])
        return doomed

    def clean_up(self) -> int:
        """Delete leftovers of killed processes; return the number of objects.

        Only the owner may call this: every earlier attempt is dead, so its data without a manifest
        will never get one.
        """
        kept = set()
        for key in (*(s.key for s in self.storage.list("commits/step-")), *self.quarantined()):
            try:
                kept.add(self._manifest(key)["directory"])
            except NotFoundError:
                continue
            except (DamagedError, OtherVersionError):  # may concern any of the step's data
                kept.add(f"checkpoints/{step_name(step_of(key))}")
        debris = [
            stored.key
            for stored in self.storage.list("checkpoints/")
            if not any(stored.key.startswith(f"{directory}/") for directory in kept)
        ]
        if debris:
            self._assert_owned()
            self.storage.delete(debris)
        return len(debris) + sum(self.storage.abort_uploads(prefix) for prefix in self._cleaned())

    def _cleaned(self) -> list[str]:
        """Return the prefixes to clean; a run directory has other files, too."""
        if not self._is_run_dir or not self.run_dir.exists():
            return [""]
        unfinished = (p.name for p in self.run_dir.iterdir() if UNFINISHED.fullmatch(p.name))
        return ["checkpoints/", "commits/", "damaged/", *unfinished]

    # A run directory

    def newest(self, *, quarantine: bool = True) -> Checkpoint | None:
        """Return `newest_checkpoint` of this run directory only."""
        return newest_checkpoint([self], self, quarantine=quarantine)

    def load(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step; raise `DamagedError` if its bytes do not match."""
        manifest = self.manifest(step)
        directory = self.run_dir / manifest["directory"]
        for name, expected in manifest["files"].items():
            check_file(directory / name, expected)
        return Checkpoint(directory, manifest)

    def save(
        self,
        weights: Mapping[str, Tensor],
        engine_state: Mapping[str, Any],
        random_states: Sequence[Mapping[str, Tensor]],
        manifest: Mapping[str, Any],
    ) -> Checkpoint:
        """Write and commit the checkpoint of `manifest["step"]`; then prune older ones.

        `random_states` are each process's generators. Raises `UnavailableError` if the disk is
        full, and leaves no part of it.
        """
        step = int(manifest["step"])
        if step in self.steps():
            known = self.manifest(step)
            return Checkpoint(self.run_dir / known["directory"], known)
        directory = f"checkpoints/{step_name(step)}/{attempt_name(self._attempt)}"
        with atomic_directory(self.run_dir / directory) as temporary:
            save_tensors(weights, temporary / "module.safetensors")
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
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        content = {**manifest, "attempt": self._attempt, "directory": directory, "files": files}
        content = sealed(content)
        # The manifest last: its presence means that everything else is complete.
        put_json(self.storage, _commit(step), content)
        try:
            self.prune()
        except UnavailableError as error:  # the next save tries again
            print(f"old checkpoints could not be deleted: {error}", file=sys.stderr)
        return Checkpoint(self.run_dir / directory, content)

    def download(self, step: int, source: CheckpointStore) -> Checkpoint:
        """Copy a checkpoint of another store into this run directory.

        Raises `DamagedError` if a file does not match the manifest.
        """
        manifest = source.manifest(step)
        with atomic_directory(self.run_dir / manifest["directory"]) as temporary:
            for name in manifest["files"]:
                source._fetch(manifest, name, temporary / name)
        put_json(self.storage, _commit(step), manifest)
        return Checkpoint(self.run_dir / manifest["directory"], manifest)

    # A storage

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a local checkpoint here and commit it.

        Raises `ConflictError` if another writer owns the run or has committed this step with other
        content.
        """
        manifest = checkpoint.manifest
        names = {f"{manifest['directory']}/{name}": name for name in manifest["files"]}
        sizes = {key: manifest["files"][name]["bytes"] for key, name in names.items()}

        def send(key: str) -> None:
            if key not in self._uploaded:
                self.storage.upload(checkpoint.directory / names[key], key)
                self._uploaded.add(key)
            if self._missing({key: sizes[key]}):  # although the store acknowledged it
                self._uploaded.discard(key)
                raise UnavailableError(f"{self.storage.url}/{key} was not uploaded completely")

        with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="upload") as pool:
            list(pool.map(send, names))
        self._assert_owned()
        commit = _commit(checkpoint.step)
        try:
            put_json(self.storage, commit, manifest, only_new=True)
            try:
                self._assert_owned()
            except ConflictError:
                # The new owner may have deleted the uncommitted data.
                if self._missing(sizes):
                    self.storage.delete([commit])
                raise
        except AlreadyExistsError:
            if self.manifest(checkpoint.step)["files"] != manifest["files"]:
                raise ConflictError(
                    f"another writer has committed step {checkpoint.step:,} to {self.storage.url} "
                    "with other content; start again to continue from there"
                ) from None

    def _missing(self, sizes: Mapping[str, int]) -> list[str]:
        return [key for key, size in sizes.items() if self.storage.num_bytes(key) != size]

    def discard(self, checkpoint: Checkpoint) -> None:
        """Delete the uploaded files of a checkpoint that will not be committed."""
        if checkpoint.step in self.steps():  # committed, but the answer was lost
            return
        stored = self.storage.list(f"{checkpoint.manifest['directory']}/")
        self._uploaded -= {item.key for item in stored}
        self.storage.delete([item.key for item in stored])


def newest_checkpoint(
    sources: Sequence[CheckpointStore], local: CheckpointStore, *, quarantine: bool = True
) -> Checkpoint | None:
    """Return the newest intact checkpoint of any source; None if there never was one.

    For equal steps the first source wins; one that is not in `local` is copied there. A damaged one
    is skipped with a message, and quarantined unless the caller only reads. Raises `DataError` if
    all are damaged, `OtherVersionError` if another release wrote one, and `UnavailableError` if one
    cannot be read; then nothing was changed.
    """
    for source in sources:
        source.refuse_other_versions()
    steps = [set(source.steps()) for source in sources]
    for step in sorted(set().union(*steps), reverse=True):
        for source, known in zip(sources, steps, strict=True):
            if step not in known:
                continue
            try:
                return local.load(step) if source is local else local.download(step, source)
            except DamagedError as error:
                if quarantine:
                    source.quarantine(step)
                print(f"checkpoint of step {step} in {source} is damaged and skipped: {error}",
                      file=sys.stderr)  # fmt: skip
            except NotFoundError:  # pruned in the meantime
                continue
    # Also if an earlier start quarantined them: a run never restarts silently.
    if any(steps) or any(source.quarantined() for source in sources):
        raise DataError(
            f"every checkpoint in {' and '.join(map(str, sources))} is damaged; remove the run to "
            "start again from the beginning"
        )
    return None


def restore_metrics(checkpoint: Checkpoint, path: Path) -> None:
    """Replace the file at `path` by the checkpoint's own records."""
    saved = checkpoint.directory / METRICS
    if saved.exists():
        write_bytes(path, saved.read_bytes())


def _commit(step: int) -> str:
    return f"commits/{step_name(step)}.json"
