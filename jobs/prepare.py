"""Turn raw text into what 'smallbench pretrain' reads: a tokenizer and shards of token rows.

Documents are cleaned; short ones and exact duplicates are dropped and counted; some are held out
by a hash of their text. In text files blank lines separate documents (--documents); a row of JSON,
CSV or parquet has one in its field 'text' (--text_field). Memory stays flat and nothing is
unpacked to disk. After Ctrl-C, SIGTERM or a crash the same command continues, and ends with exactly
the bytes it would have had; the sampling for a tokenizer, which is first, begins again.
If --out is a URL, the corpus is built in --cache and uploaded when it is complete.

Several machines can share the files: run the same command on each with its own --shard=K/N. The
first machine joins the parts to the bytes that one machine would write. --corpus can also be a
folder in a bucket, s3://BUCKET/FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallbench.config import Location, option
from smallbench.data.config import PrepareConfig
from smallbench.jobs.base import Job, start
from smallbench.plugins import nothing_left
from smallbench.sharding import ShardConfig
from smallbench.stop import SignalStop
from smallbench.storage.base import is_remote
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, ShardConfig, PrepareConfig):
    """Flags of `smallbench prepare`."""

    out: Location = option(
        help="output directory or URL; the same one continues an interrupted run"
    )
    cache: Path | None = option(
        None, help="local cache of corpora with a URL; none: ~/.cache/smallbench"
    )
    workers: int | None = option(
        None,
        least=1,
        help="number of worker processes, with the same result for any number; none: one per core",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.part()


def run(options: Options) -> None:
    """Prepare to the end, or to the first signal."""
    from smallbench.data.prepare import prepare, prepare_remote
    from smallbench.data.shards import Manifest, corpus_summary
    from smallbench.data.shares import prepare_share

    number, count = options.part()
    manifest: Manifest | None
    with SignalStop() as stop:
        how: dict[str, Any] = {"workers": options.workers, "stop": stop}
        remote: dict[str, Any] = {"storage": options, "cache": options.cache}
        if count > 1 or is_remote(options.corpus, name="--corpus"):
            manifest = prepare_share(options, options.out, number, count, **remote, **how)
        elif is_remote(options.out):
            manifest = prepare_remote(options, options.out, **remote, **how)
        else:
            out = Path(options.out)
            with nothing_left(out, is_kept=(out / "manifest.json").is_file):
                manifest = prepare(options, out=out, **how)
    if manifest is not None:
        print(corpus_summary(manifest, options.out))


JOB = Job("prepare", Options, run)

if __name__ == "__main__":
    start(JOB)
