"""A run in a storage: its lease, its checkpoints and its record.

run.json, tokenizer/…, metrics.jsonl   as in the run directory
attempts/…, lease.json                 see `checkpoints.lease`
checkpoints/…, commits/…, damaged/…    see `checkpoints.store`
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from smallbench.checkpoints.lease import RunLease
from smallbench.checkpoints.manifest import METRICS
from smallbench.checkpoints.record import RECORD_NAME, parse_record, read_record
from smallbench.checkpoints.store import Checkpoint, CheckpointStore
from smallbench.errors import ConfigError, CredentialsError, DataError, UnavailableError
from smallbench.files import write_bytes
from smallbench.storage.base import NotFoundError, Storage


class RemoteRun:
    """One run below a storage's URL. All methods raise `UnavailableError` as the storage does."""

    def __init__(self, storage: Storage, *, lease_seconds: float = 60) -> None:
        self.storage = storage
        self.lease = RunLease(storage, seconds=lease_seconds)
        self.store = CheckpointStore(storage, assert_owned=self.lease.assert_owned)

    def push(self, checkpoint: Checkpoint) -> None:
        """Upload and commit a checkpoint, and the records up to it."""
        self.store.upload(checkpoint)
        run_dir = checkpoint.directory.parents[2]
        for path in (checkpoint.directory / METRICS, run_dir / RECORD_NAME):
            if path.exists():
                # Copies for people and tools: each checkpoint has its own, and the next push
                # repeats these.
                with suppress(UnavailableError, CredentialsError):
                    self.storage.put(path.name, path.read_bytes())

    def pull_record(
        self,
        run_dir: Path,
        *,
        remedy: str = "another --run_dir (its last part is the run's name in the storage)",
    ) -> None:
        """Download `run.json` if the directory has none, or one with fewer attempts.

        Raises `ConfigError` if the storage holds another run than the directory: choose `remedy`.
        """
        name = f"{self.storage.url}/{RECORD_NAME}"
        try:
            content = self.storage.get(RECORD_NAME)
        except NotFoundError:
            if self.store.steps():
                raise DataError(
                    f"{self.storage.url} has checkpoints but no {RECORD_NAME}; restore that file"
                ) from None
            return
        there = parse_record(content, name)
        path = run_dir / RECORD_NAME
        if path.exists():
            here = read_record(path)
            if here["run_id"] != there["run_id"]:
                raise ConfigError(
                    f"{self.storage.url} and {run_dir} hold two different runs; choose {remedy}"
                )
            if len(here["attempts"]) >= len(there["attempts"]):
                return
        write_bytes(path, content)

    def push_record(self, run_dir: Path) -> None:
        """Upload `run.json` and the tokenizer."""
        self.lease.assert_owned()
        self.storage.put(RECORD_NAME, (run_dir / RECORD_NAME).read_bytes())
        for path in sorted((run_dir / "tokenizer").iterdir()):
            key = f"tokenizer/{path.name}"
            if self.storage.num_bytes(key) != path.stat().st_size:
                self.storage.upload(path, key)

    def pull_tokenizer(self, run_dir: Path) -> None:
        """Download the tokenizer of the run."""
        for stored in self.storage.list("tokenizer/"):
            path = run_dir / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.download(stored.key, path)
