"""The whole chain in a few minutes on two CPU cores, with no data and no network.

Corpus: the English documentation installed with Python and its packages. Then a tiny BERT from
scratch, its export, fine-tuning on generated samples for the eight GLUE tasks, and a table: the
trained model beside the same model with random weights. The scores say nothing about GLUE. An
interrupted quickstart continues where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smallbench.config import option, override_all
from smallbench.data.config import PrepareConfig
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.tasks import TASKS
from smallbench.jobs.base import Job, announce, start
from smallbench.recipes import recipe_config
from smallbench.stop import SignalStop, Stop
from smallbench.storage.config import StorageConfig
from smallbench.templates import from_template
from smallbench.train.config import PretrainConfig

if TYPE_CHECKING:
    from smallbench.glue.results import RunResult


@dataclass(frozen=True)
class Options:
    """Flags of `smallbench quickstart`."""

    out: Path = option(Path("quickstart"), help="directory of everything that is written")
    max_steps: int | None = option(None, help="optimizer steps of the pretraining; none: 500")
    corpus_documents: int = option(4_000, help="number of documents of the corpus", least=1)


def config(options: Options) -> PretrainConfig:
    """Return `bert-tiny` with a schedule for some hundred steps."""
    recipe: PretrainConfig = recipe_config("bert-tiny")
    return override_all(
        recipe,
        {
            "train.max_steps": 500,
            # Held-out loss on 1.7 MB of documentation: 5.14 after 450 such steps, 0.9M tokens; with
            # the recipe's AdamW and batch 5.60 after 400 steps, 1.6M tokens.
            "optim.optimizer": "muon",
            "train.global_batch_size": 16,
            "schedule.warmup_fraction": 0.1,
            "train.eval_every_steps": 250,
            "train.save_every_steps": 250,
            "train.num_eval_rows": 256,
        },
    )


def run(options: Options, config: PretrainConfig) -> None:
    """Prepare, pretrain, export, fine-tune, compare."""
    from smallbench.data.prepare import prepare
    from smallbench.export.huggingface import export
    from smallbench.glue.protocols import side_by_side
    from smallbench.pretraining.pretrain import pretrain
    from smallbench.report.page import write_report
    from smallbench.report.runs import read_recorded_runs

    out = options.out
    corpus, run_dir, model = out / "corpus", out / "run", out / "export"
    with SignalStop() as stop:
        announce("1/5 prepare: the documentation installed with Python → token shards")
        manifest = prepare(
            PrepareConfig(
                corpus="installed-docs",
                vocab_size=8_000,
                eval_fraction=0.02,
                max_documents=options.corpus_documents,
            ),
            out=corpus,
            stop=stop,
        )
        rows, size = manifest.rows["train"], manifest.counts["text_bytes"] / 1e6
        print(
            f"{corpus}: {size:.1f} MB of text, {rows:,} rows of {manifest.sequence_length} tokens"
        )
        announce(f"2/5 pretrain: a tiny BERT, {config.train.max_steps:,} steps from scratch")
        pretrain(config, data=corpus, run_dir=run_dir, stop=stop)
        write_report(read_recorded_runs((str(run_dir),), StorageConfig()), out / "report.html")
        announce("3/5 export: a directory that AutoModel.from_pretrained loads")
        difference = export(run_dir, model).difference
        print(f"{model}: outputs differ from the run's by at most {difference:.1e}")
        announce("4/5 glue: generated samples of the eight tasks, this model and random weights")
        columns = score(model, out, config, stop)
    announce("5/5 the table: scores × 100 on samples, one seed; they say nothing about GLUE")
    print(side_by_side(columns))
    print("Sentences as simple as these are learned from random weights too.")
    print(from_template("smallbench.jobs", "quickstart.txt", out=out), end="")


def score(model: Path, out: Path, config: PretrainConfig, stop: Stop) -> dict[str, list[RunResult]]:
    """Fine-tune the model and random weights of its shape on generated samples of all tasks."""
    from smallbench.glue.grid import GridRun, run_grid
    from smallbench.glue.pretrained import PretrainedEncoder
    from smallbench.glue.samples import write_sample_glue
    from smallbench.glue.task_data import load_task

    write_sample_glue(out / "samples")
    tasks = [load_task(task, out / "samples") for task in TASKS.values()]
    # With batches of 16 rows, half as many steps, some seeds did not learn MRPC and MNLI.
    finetuning = FinetuneConfig(
        epochs=4, batch_size=8, device=config.train.device, precision=config.train.precision
    )
    return {
        name: run_grid(
            PretrainedEncoder(str(model), random_init=is_random),
            tasks,
            replace(finetuning, random_init=is_random),
            plan=[GridRun(task, "dev", learning_rate=5e-4, seed=1) for task in TASKS],
            out=out / "glue" / name.replace(" ", "-"),
            shows_runs=False,
            stop=stop,
        )
        for name, is_random in (("pretrained", False), ("random weights", True))
    }


JOB = Job("quickstart", Options, run, config=config, shortcuts={"max_steps": "train.max_steps"})

if __name__ == "__main__":
    start(JOB)
