"""Turn raw text into what 'smallbench pretrain' reads: a tokenizer and shards of token rows.

Documents are cleaned; short ones and exact duplicates are dropped and counted; some are held out
by a hash of their text. In .txt files blank lines separate documents; .jsonl and .parquet have
one in each 'text'. Memory stays flat and nothing is unpacked to disk. Ctrl-C, SIGTERM or a crash
loses a minute: the same command continues, and ends with exactly the bytes it would have had.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.base import Job
from smallbench.config import option
from smallbench.data.config import PrepareConfig


@dataclass(frozen=True, kw_only=True)
class Options(PrepareConfig):
    """Flags of `smallbench prepare`."""

    out: Path = option(help="directory to write; the same one continues what was interrupted")
    workers: int | None = option(
        None, help="processes; none means one a core. The result does not depend on it"
    )


def run(options: Options) -> None:
    """Prepare to the end, or to the first signal."""
    from smallbench.data.prepare import prepare, summary
    from smallbench.train.stop import StopRequest

    with StopRequest() as stop:
        manifest = prepare(options, out=options.out, workers=options.workers, should_stop=stop)
    print(summary(manifest, options.out))


JOB = Job(
    name="prepare",
    options=Options,
    run=run,
    examples=(
        "smallbench prepare --corpus=openwebtext.tar.xz --out=corpus",
        "smallbench prepare --corpus=hub:Skylion007/openwebtext --out=corpus --tokenizer=bpe",
        "smallbench prepare --corpus='texts/**/*.jsonl.zst' --out=corpus --tokenizer=vocab.txt",
        "smallbench prepare --corpus=installed-docs --out=corpus --vocab_size=8000",
    ),
)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main([JOB.name, *sys.argv[1:]]))
