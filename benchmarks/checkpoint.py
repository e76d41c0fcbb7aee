"""What checkpoints cost a run: stall, save, upload, verification, resuming.

    python -m benchmarks.checkpoint [--recipe=bert-small] [--storage=s3://BUCKET] [--rounds=5]

The checkpoint is that of a recipe with its optimizer's state; `CheckpointStore`, `RemoteRun` and
`Uploader` work as in a run. Uploads have a peer: boto3's `upload_file` with its defaults, for the
same files, alternating. Without `--storage` the server is moto, in a process of its own on this
machine; else the one that boto3 finds (AWS_ENDPOINT_URL_S3), below a name that is deleted at the
end. Steps with and without an upload alternate, too; a server on the same machine takes its part of
the processor, and of the steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from benchmarks.systems import LENGTH, trainer_of
from smallbench.checkpoints.manifest import METRICS, step_name
from smallbench.checkpoints.remote_run import RemoteRun
from smallbench.checkpoints.retention import Retention
from smallbench.checkpoints.state import random_state
from smallbench.checkpoints.store import (
    Checkpoint,
    CheckpointStore,
    newest_checkpoint,
)
from smallbench.checkpoints.uploader import Uploader
from smallbench.config import digest
from smallbench.recipes import RECIPES
from smallbench.storage import open_storage
from smallbench.storage.base import join
from smallbench.train.config import PretrainConfig
from smallbench.train.precision import choose_device, choose_precision
from smallbench.train.trainer import Trainer

VOCAB_SIZE = 30_522
"""BERT-uncased's, where a recipe leaves it to the corpus."""
PATIENCE_SECONDS = 600.0


def serve(link: Connection) -> None:
    """moto's process: one bucket at a port of its own, until the other end hangs up."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # which names each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    link.send(server.get_host_and_port()[1])
    with suppress(EOFError):
        link.recv()
    server.stop()


@contextmanager
def storage_at(url: str | None) -> Iterator[tuple[str, str]]:
    """The URL of a storage that is emptied afterwards, and what serves it."""
    process = None
    if url is None:
        context = multiprocessing.get_context("spawn")
        link, other = context.Pipe()
        process = context.Process(target=serve, args=(other,), daemon=True)
        process.start()
        other.close()
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{link.recv()}",
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        plain_client().create_bucket(Bucket="benchmark")
        url, server = "s3://benchmark", "moto, in a process of its own"
    else:
        bucket = url.removeprefix("s3://").partition("/")[0]
        answer = plain_client().head_bucket(Bucket=bucket)["ResponseMetadata"]
        server = answer["HTTPHeaders"].get("server", "one that does not say its name")
    url = join(url, f"benchmark-{uuid4().hex[:8]}")
    storage = open_storage(url)
    storage.check()
    try:
        yield url, server
    finally:
        storage.abort_uploads()
        storage.delete([stored.key for stored in storage.list()])
        if process:
            link.close()
            process.join()


def plain_client() -> Any:
    """What a user would write."""
    import boto3

    return boto3.client("s3")


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forget(directory: Path) -> None:
    """Take a directory's files out of the page cache, where the system knows how to."""
    if hasattr(os, "posix_fadvise"):
        for path in directory.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Uploads:
    """Uploads of one checkpoint under ever new names, by ours and by the peer."""

    def __init__(self, url: str, checkpoint: Checkpoint) -> None:
        self.remote = RemoteRun(open_storage(url))
        self.remote.lease.claim(holder="benchmark")
        self._checkpoint = checkpoint
        self._numbers = count(1)
        self._client = plain_client()
        bucket, _, self._prefix = url.removeprefix("s3://").partition("/")
        self._bucket = bucket

    def ours(self) -> float:
        """Seconds until a checkpoint is uploaded and committed."""
        step = next(self._numbers)
        manifest = {
            **self._checkpoint.manifest,
            "step": step,
            "directory": f"checkpoints/{step_name(step)}/attempt-0001",
        }
        checkpoint = replace(self._checkpoint, manifest=manifest)
        seconds = seconds_of(lambda: self.remote.push(checkpoint))
        self.remote.store.discard(checkpoint)
        return seconds

    def plain(self) -> float:
        """Seconds of `upload_file` for each file."""
        folder = f"plain-{next(self._numbers)}"

        def work() -> None:
            for name in self._checkpoint.manifest["files"]:
                path = self._checkpoint.directory / name
                self._client.upload_file(str(path), self._bucket, f"{self._prefix}/{folder}/{name}")

        seconds = seconds_of(work)
        storage = self.remote.storage
        storage.delete([stored.key for stored in storage.list(f"{folder}/")])
        return seconds

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Uploads follow each other in a thread while the block runs."""
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                self.ours()

        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(work)
            try:
                yield
            finally:
                ended.set()
        result.result()


def manifest_of(trainer: Trainer, config: PretrainConfig, device: torch.device) -> dict[str, Any]:
    """What a run writes about a checkpoint."""
    return {
        "step": trainer.progress.step,
        "progress": trainer.progress.state_dict(),
        "callbacks": {},
        "config_digest": digest(config),
        "precision": trainer.engine.precision,
        "device": device.type,
    }


def resume(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    """All that a run takes from a checkpoint."""
    assert checkpoint is not None
    trainer.engine.load_weights(checkpoint.module_state())
    trainer.engine.load_state_dict(checkpoint.engine_state())
    checkpoint.restore_random_state()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="bert-small")
    parser.add_argument("--storage", metavar="s3://BUCKET/PREFIX", help="none: moto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--micro_batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; none: /tmp")
    arguments = parser.parse_args()
    if arguments.storage and not arguments.storage.startswith("s3://"):
        parser.error(f"--storage={arguments.storage}: boto3 is the peer, so s3://BUCKET/PREFIX")
    with (
        storage_at(arguments.storage) as (url, server),
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="benchmark-") as directory,
    ):
        measure(arguments, url, server, Path(directory))


def measure(arguments: argparse.Namespace, url: str, server: str, directory: Path) -> None:
    """Everything, as a table and a line of JSON."""
    torch.set_num_threads(arguments.threads)
    config: PretrainConfig = RECIPES[arguments.recipe]()
    if config.model.vocab_size is None:
        config = replace(config, model=replace(config.model, vocab_size=VOCAB_SIZE))
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    batch_size, every = config.train.global_batch_size, config.train.save_every_steps
    trainer, another = (
        trainer_of(
            config,
            batch_size=batch_size,
            micro_batch_size=min(arguments.micro_batch_size, batch_size),
            precision=precision,
            device=device,
        )
        for _ in range(2)
    )
    run_dir, empty = directory / "run", directory / "empty"
    run_dir.mkdir()
    (run_dir / METRICS).write_text('{"event": "train"}\n' * 1000)
    remote = RemoteRun(open_storage(join(url, "run")))
    remote.lease.claim(holder="benchmark")
    uploader = Uploader(remote, Retention(), max_unsynced_seconds=PATIENCE_SECONDS)
    store = CheckpointStore(run_dir, is_in_use=uploader.is_in_use)

    def step() -> float:
        return seconds_of(lambda: trainer.train_step().loss.item())

    def save() -> tuple[float, float, Checkpoint]:
        """Seconds of the save and of handing it over, as the training thread waits for them."""
        start = time.perf_counter()
        manifest = manifest_of(trainer, config, device)
        engine = trainer.engine
        saved = store.save(engine.weights(), engine.state_dict(), [random_state()], manifest)
        middle = time.perf_counter()
        uploader.submit(saved)
        return middle - start, time.perf_counter() - middle, saved

    seconds: dict[str, list[float]] = defaultdict(list)
    with uploader:
        for _ in range(2):  # warm-up
            step()
        _, _, checkpoint = save()
        assert uploader.drain(PATIENCE_SECONDS)
        # A copy, since the store deletes its older ones.
        copied = shutil.copytree(checkpoint.directory, directory / "copied")
        uploads = Uploads(join(url, "uploads"), replace(checkpoint, directory=copied))
        uploads.ours(), uploads.plain()
        for number in range(arguments.rounds):
            seconds["step"].append(step())
            with uploads.going_on():
                seconds["step_uploading"].append(step())
            pair = [("upload", uploads.ours), ("plain", uploads.plain)]
            for name, upload in pair if number % 2 else reversed(pair):
                seconds[name].append(upload())
            saving, submitting, _ = save()
            seconds["save"].append(saving)
            seconds["submit"].append(submitting)
            assert uploader.drain(PATIENCE_SECONDS)
            assert uploader.failure is None
            newest = trainer.progress.step
            forget(run_dir)
            seconds["verify"].append(seconds_of(lambda: store.load(newest)))  # noqa: B023
            forget(run_dir)
            seconds["resume"].append(
                seconds_of(lambda: resume(another, newest_checkpoint([store, remote.store], store)))
            )
            there = CheckpointStore(empty)
            seconds["resume_emptied"].append(
                seconds_of(lambda: resume(another, newest_checkpoint([there, remote.store], there)))  # noqa: B023
            )
            shutil.rmtree(empty)
    report(arguments, seconds, checkpoint, server, every_steps=every, batch_size=batch_size,
           precision=precision)  # fmt: skip


def report(
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    checkpoint: Checkpoint,
    server: str,
    *,
    every_steps: int,
    batch_size: int,
    precision: str,
) -> None:
    """Print medians."""
    t = {name: statistics.median(values) for name, values in seconds.items()}
    num_bytes = sum(file["bytes"] for file in checkpoint.manifest["files"].values())
    stall = t["save"] + t["submit"]
    slow_down = t["step_uploading"] / t["step"]
    between = every_steps * t["step"]
    # While an upload runs for U seconds, the work of U / slow_down is done.
    lost = stall + t["upload"] * max(0.0, 1 - 1 / slow_down)
    ratio = t["plain"] / t["upload"]
    print(f"{arguments.recipe}, {num_bytes / 1e6:.0f} MB, {arguments.threads} threads, {precision};"
          f" server: {server}; medians of {arguments.rounds} alternating rounds")  # fmt: skip
    print("| | seconds | MB/s | |")
    print("|---|--:|--:|---|")

    def row(title: str, value: float, note: str = "", *, moves: bool = True) -> None:
        speed = f"{num_bytes / 1e6 / value:,.0f}" if moves else ""
        print(f"| {title} | {value:.3g} | {speed} | {note} |")

    row(f"step of {batch_size} x {LENGTH} tokens", t["step"], moves=False)
    row("the same while an upload runs", t["step_uploading"], f"{slow_down:.2f} times", moves=False)
    row("save", t["save"])
    row("stall of training: save and submit", stall, moves=False,
        note=f"{stall / between:.4%} of the {every_steps:,} steps between two")  # fmt: skip
    row("stall and slower steps together", lost, f"{lost / between:.4%}", moves=False)
    row("upload and commit", t["upload"], f"{ratio:.2f} of boto3's speed")
    row("upload_file of boto3", t["plain"])
    row("verify", t["verify"])
    row("resume from the local disk", t["resume"])
    row("resume on an emptied disk", t["resume_emptied"])
    print(json.dumps({
        "benchmark": "checkpoint", "recipe": arguments.recipe, "server": server,
        "rounds": arguments.rounds, "threads": arguments.threads, "bytes": num_bytes,
        "results": {
            **{f"{name}_seconds": round(value, 5) for name, value in t.items()},
            "stall_fraction": stall / between, "lost_fraction": lost / between,
            "slow_down": round(slow_down, 3), "upload_ratio": round(ratio, 3),
        },
        "all_seconds": {
            name: [round(value, 4) for value in values] for name, values in seconds.items()
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
