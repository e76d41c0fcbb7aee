"""A run in a storage: its lease, its checkpoints, and the records that go with them.

run.json, tokenizer/…, metrics.jsonl   as in the run directory
attempts/…, lease.json                 see `train.lease`
checkpoints/…, commits/…, damaged/…    see `train.checkpoint`
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from smallbench.errors import CredentialsError, DataError, UnavailableError
from smallbench.files import parse_json, write_bytes
from smallbench.storage.base import NotFoundError, Storage, join
from smallbench.tracking.wandb import WandbRun
from smallbench.train.checkpoint import Checkpoint, CheckpointStore
from smallbench.train.lease import RunLease
from smallbench.train.manifest import METRICS, check_version, step_name
from smallbench.train.record import RECORD_VERSION
from smallbench.train.run_record import RECORD_NAME, check_record, read_record


class RemoteRun:
    """One run below a storage's URL. All methods raise `UnavailableError` as the storage does."""

    def __init__(self, storage: Storage, *, lease_seconds: float = 60) -> None:
        self.storage = storage
        self.lease = RunLease(storage, seconds=lease_seconds)
        self.store = CheckpointStore(storage, assert_owned=self.lease.assert_owned)

    def push(self, checkpoint: Checkpoint) -> None:
        """Upload and commit a checkpoint, and show the records up to it."""
        self.store.upload(checkpoint)
        run_dir = checkpoint.directory.parents[2]
        shown = ((METRICS, checkpoint.directory / METRICS), (RECORD_NAME, run_dir / RECORD_NAME))
        for key, path in shown:
            if path.exists():
                # For people and their tools: what counts is in the checkpoint, and the next brings
                # them again.
                with suppress(UnavailableError, CredentialsError):
                    self.storage.put(key, path.read_bytes())

    def pull_record(self, run_dir: Path) -> None:
        """Fetch `run.json` if the directory has none, or one with fewer attempts.

        Raises `DataError` if the storage holds another run than the directory.
        """
        name = f"{self.storage.url}/{RECORD_NAME}"
        try:
            content = self.storage.get(RECORD_NAME)
        except NotFoundError:
            if self.store.steps():
                raise DataError(
                    f"{self.storage.url} has checkpoints but no {RECORD_NAME}; bring that file back"
                ) from None
            return
        there = parse_json(content, name)
        check_version(there.get("schema_version"), RECORD_VERSION, name)
        check_record(there, name)
        path = run_dir / RECORD_NAME
        if not path.exists():
            write_bytes(path, content)
            return
        here = read_record(path)
        if here["run_id"] == there["run_id"]:
            if len(here["attempts"]) < len(there["attempts"]):
                write_bytes(path, content)
        else:
            raise DataError(
                f"{self.storage.url} and {run_dir} hold two different runs; choose another "
                "--run_dir (its last part is the run's name in the storage)"
            )

    def push_record(self, run_dir: Path) -> None:
        """Put `run.json` and the tokenizer beside the checkpoints."""
        self.lease.assert_owned()
        self.storage.put(RECORD_NAME, (run_dir / RECORD_NAME).read_bytes())
        for path in sorted((run_dir / "tokenizer").iterdir()):
            key = f"tokenizer/{path.name}"
            if self.storage.num_bytes(key) != path.stat().st_size:
                self.storage.upload(path, key)

    def pull_tokenizer(self, run_dir: Path) -> None:
        """Fetch the tokenizer that belongs to the run."""
        for stored in self.storage.list("tokenizer/"):
            path = run_dir / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.download(stored.key, path)


def refer_checkpoints(view: WandbRun, run_id: str, remote: RemoteRun) -> None:
    """Show the checkpoints of a finished run, where they are, as versions of one artifact.

    Not before: until then each of them may still be deleted.
    """
    steps = remote.store.steps()
    for step in steps:
        manifest = remote.store.manifest(step)
        view.refer(
            f"checkpoint-{run_id}",
            kind="checkpoint",
            url=join(remote.storage.url, manifest["directory"]),
            files=manifest["files"],
            metadata={"step": step, "files": manifest["files"], "progress": manifest["progress"]},
            aliases=[step_name(step), *(["final"] if step == steps[-1] else [])],
        )
