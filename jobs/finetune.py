"""Fine-tune an encoder on one GLUE task with one seed, and store what it predicts.

Any encoder works: a directory from 'smallbench export', the --run_dir of a pretraining, or the id
of a model on the Hugging Face hub; the first two give the same scores. Predictions are stored with
their example index, so every score can be recomputed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from smallbench.config import Location, check, option
from smallbench.errors import UsageError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.tasks import task_named
from smallbench.jobs.base import Job, start
from smallbench.stop import SignalStop
from smallbench.storage.config import StorageConfig


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, FinetuneConfig):
    """Flags of `smallbench finetune`."""

    model: Location = option(
        help="export or run directory, URL of an export, or a model's id on the hub"
    )
    task: str = option(help="cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte")
    glue: Location = option(help="folder in the official TSV layout, or hub")
    out: Path = option(help="folder of stored results; finished runs are not repeated")
    learning_rate: float = option(
        3e-4,  # ELECTRA-Small's (Clark et al. 2020, table 7); small encoders need more than BERT's
        help="peak learning rate",
    )
    seed: int = option(1, help="seed of the head, the batches and dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "," in self.task:
            raise UsageError(
                f"--task takes one task; for several: smallbench glue --tasks={self.task}"
            )
        check(self, "", seed=">= 0", learning_rate=">= 0")


def run(options: Options) -> None:
    """One run, and its scores."""
    from smallbench.export.huggingface import as_export, is_run
    from smallbench.glue.grid import GridRun, run_grid
    from smallbench.glue.pretrained import PretrainedEncoder
    from smallbench.glue.task_data import load_task

    data = load_task(task_named(options.task), options.glue)
    if data.unofficial:
        print(f"unranked: {'; '.join(data.unofficial)}", file=sys.stderr, flush=True)
    with SignalStop() as stop, as_export(options.model, options) as model:
        encoder = PretrainedEncoder(
            model,
            random_init=options.random_init,
            # A run's code is its user's own, who named the run.
            trust_remote_code=options.trust_remote_code or is_run(options.model),
        )
        plan = [GridRun(options.task, "dev", options.learning_rate, options.seed)]
        run_grid(encoder, [data], options, plan=plan, out=options.out, stop=stop)
    print(f"Stored in {options.out}. All tasks and seeds: smallbench glue --help")


JOB = Job("finetune", Options, run)

if __name__ == "__main__":
    start(JOB)
