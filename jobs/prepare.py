"""Turn raw text into what 'smallbench pretrain' reads: a tokenizer and shards of token rows.

Documents are cleaned; short ones and exact duplicates are dropped and counted; some are held out
by a hash of their text. In .txt files blank lines separate documents; .jsonl and .parquet have
one in each 'text'. Memory stays flat and nothing is unpacked to disk. Ctrl-C, SIGTERM or a crash
loses a minute: the same command continues, and ends with exactly the bytes it would have had.
With an --out like s3://BUCKET/PREFIX the work is done in --cache, and published when it is whole.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.base import Job
from smallbench.config import Location, option
from smallbench.data.config import PrepareConfig
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, PrepareConfig):
    """Flags of `smallbench prepare`."""

    out: Location = option(
        help="directory or URL to write; the same one continues what was interrupted"
    )
    cache: Path | None = option(
        None, help="where corpora with a URL are kept locally; none: ~/.cache/smallbench"
    )
    workers: int | None = option(
        None, help="processes; none means one a core. The result does not depend on it"
    )


def run(options: Options) -> None:
    """Prepare to the end, or to the first signal."""
    from smallbench.data.prepare import prepare, summary
    from smallbench.data.remote import prepare_remote
    from smallbench.storage.base import is_remote
    from smallbench.train.stop import StopRequest

    out, workers = options.out, options.workers
    with StopRequest() as stop:
        if is_remote(out):
            manifest = prepare_remote(
                options,
                url=out,
                storage=options,
                cache=options.cache,
                workers=workers,
                should_stop=stop,
            )
        else:
            manifest = prepare(options, out=Path(out), workers=workers, should_stop=stop)
    print(summary(manifest, out))


JOB = Job(
    name="prepare",
    options=Options,
    run=run,
    examples=(
        "smallbench prepare --corpus=openwebtext.tar.xz --out=corpus",
        "smallbench prepare --corpus=hub:Skylion007/openwebtext --out=corpus --tokenizer=bpe",
        "smallbench prepare --corpus='texts/**/*.jsonl.zst' --out=corpus --tokenizer=vocab.txt",
        "smallbench prepare --corpus=openwebtext.tar.xz --out=s3://bucket/openwebtext",
        "smallbench prepare --corpus=installed-docs --out=corpus --vocab_size=8000",
    ),
)

if __name__ == "__main__":
    from jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
