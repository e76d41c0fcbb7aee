"""Stored runs made up for tests."""

from dataclasses import replace

from smallbench.glue.results import (
    RunResult,
    RunSettings,
    SplitResult,
    read_predictions,
    read_run,
    score_run,
)
from smallbench.glue.tasks import TASKS


def settings_of(task="cola", **changes):
    settings = RunSettings(
        task=task,
        model="org/encoder",
        model_sha256="ab" * 32,
        files_sha256="ef" * 32,
        num_parameters=13_500_000,
        learning_rate=1e-4,
        seed=1,
        epochs=3,
        batch_size=32,
        max_length=128,
        weight_decay=0.01,
        warmup_fraction=0.1,
        clip_norm=1.0,
        precision="fp32",
    )
    return replace(settings, **changes)


def run_of(task="cola", score=0.5, failed=False, **changes):
    metrics = dict.fromkeys(TASKS[task].metrics, score)
    settings = settings_of(task, **changes)
    return RunResult(
        settings=settings,
        splits={
            name: SplitResult(metrics=metrics, num_examples=100, failed=failed)
            for name in settings.scored_splits
        },
        data_sha256={"train": "cd" * 32, settings.split: "ef" * 32},
        unofficial=(),
        seconds=12.5,
        examples_per_second=96.0,
    )


def check_run(directory, data):
    """The run, whose metrics are those of its stored predictions."""
    run = read_run(directory)
    predictions = {
        name: read_predictions(directory, data.task, name) for name in data.scored_splits
    }
    assert score_run(run.settings, data, predictions).splits == run.splits
    return run
