"""Draw the metrics of one run, or of several over each other, as one HTML page.

The page needs no server, no network and no JavaScript: it can be mailed, or kept beside a paper.
A run is a --run_dir or, of one in a bucket, STORAGE/NAME. An active run is drawn up to its newest
record. --glue adds the GLUE scores of its checkpoints: the --out of 'smallbench glue --steps=…', or
of a whole measurement; of two measurements of a step, the one with more runs is drawn. With
--tensorboard the same records are also event files for TensorBoard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smallbench.config import check_distinct, option
from smallbench.errors import DataError
from smallbench.glue.config import ProtocolName
from smallbench.jobs.base import Job, start
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig):
    """Flags of `smallbench report`."""

    runs: tuple[str, ...] = option(help="run directories, or URLs of runs", metavar="RUN[,RUN…]")
    glue: tuple[Path, ...] = option(
        (), help="--out of 'smallbench glue' on these runs or their checkpoints"
    )
    protocol: ProtocolName = option("robust-v1", help="protocol: how a score of --glue is computed")
    out: Path = option(Path("report.html"), help="page to write", metavar="FILE.html")
    tensorboard: Path | None = option(
        None, help="also write event files for TensorBoard below this directory"
    )

    def __post_init__(self) -> None:
        check_distinct(self, "runs")


def run(options: Options) -> None:
    """Write the page, and event files where asked."""
    from smallbench.glue.steps import scores_by_step
    from smallbench.report.page import write_report
    from smallbench.report.runs import read_recorded_runs
    from smallbench.report.tensorboard import write_events

    scores, tasks = scores_by_step(options.glue, options.protocol)
    runs = [
        replace(run, scores=scores.pop(run.record["run_id"], {}))
        for run in read_recorded_runs(options.runs, options)
    ]
    if scores:
        raise DataError(f"--glue has scores of other runs: {', '.join(scores)}; leave them out")
    said = []
    if tasks:
        how = "" if options.protocol == "robust-v1" else f" by protocol {options.protocol}"
        said = [
            f"GLUE along the way is the mean of {', '.join(tasks)}{how}. Of two measurements of a "
            "step, the one with more runs is drawn."
        ]
    write_report(runs, options.out, sentences=said)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, open it in a browser")
    if options.tensorboard is not None:
        write_events(runs, options.tensorboard)
        print(f"tensorboard --logdir={options.tensorboard}")


JOB = Job("report", Options, run, words=("runs",))

if __name__ == "__main__":
    start(JOB)
