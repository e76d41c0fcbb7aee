"""Turn a run's newest checkpoint into a Hugging Face directory.

The directory loads with AutoTokenizer, AutoModelForSequenceClassification and the class that its
model card names (masked language model or discriminator), and no code of this project. It appears
only after its outputs were compared with the run's. An --out like s3://BUCKET/PREFIX is a place in
a bucket.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from smallbench.config import Location, command, option
from smallbench.jobs.base import Job, start
from smallbench.storage.base import is_remote
from smallbench.storage.config import StorageConfig
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.wandb import require_library


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, TrackerConfig):
    """Flags of `smallbench export`."""

    run: Location = option(help="--run_dir of a pretraining, or its URL: STORAGE/NAME")
    out: Location = option(help="directory or URL to write; an earlier export there is replaced")
    push: str | None = option(
        None, help="publish to this repository on the Hugging Face hub", metavar="ORG/NAME"
    )


def run(options: Options) -> None:
    """Export, check, and publish if asked."""
    from smallbench.checkpoints.inspection import local_run_directory
    from smallbench.export.huggingface import export
    from smallbench.export.upload import show_export

    require_library(options)
    with local_run_directory(options.run, options) as run_dir:
        step, difference = export(run_dir, options.out, push=options.push, storage=options)
    shown = tempfile.gettempdir() if is_remote(options.run) else options.run
    show_export(options, options.out, options, folder=Path(shown))
    print(
        f"Exported step {step:,} of {options.run} to {options.out}; its outputs differ from the "
        f"run's by at most {difference:.1e}."
        + (f" Published as {options.push}." if options.push else "")
        + f" Next:\n  {command('glue', model=options.out, glue='GLUE_DIR', out='glue')}"
    )


JOB = Job("export", Options, run)

if __name__ == "__main__":
    start(JOB)
