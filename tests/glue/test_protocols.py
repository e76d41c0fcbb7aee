"""Protocols: the conditions of a rank, and both views of the same stored runs."""

import math
import typing
from dataclasses import replace

import pytest

from smallbench.config import annotations_of
from smallbench.errors import DataError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.protocols import PROTOCOLS, departures, results_table, summarize
from smallbench.glue.tasks import TASKS
from smallbench.jobs.glue import Options
from tests.glue.runs import run_of

RATES = (5e-5, 1e-4, 2e-4, 3e-4)
ROBUST = PROTOCOLS["robust-v1"]


def robust_runs(task, *, choice=(0.1, 0.3, 0.3, 0.2), seeds=5, scores=None):
    """The runs of one task under robust-v1; by default 1e-4 is chosen."""
    epochs = TASKS[task].default_epochs
    runs = [
        run_of(task, score, split="choice", seed=0, learning_rate=rate, epochs=epochs)
        for rate, score in zip(RATES, choice, strict=True)
    ]
    return runs + [
        run_of(task, score, seed=seed, learning_rate=1e-4, epochs=epochs)
        for seed, score in enumerate(scores or [0.5] * seeds, start=1)
    ]


def test_robust_v1_is_as_it_was_published():
    """Stored scores are compared by this name, so a change here needs a new protocol."""
    assert ROBUST.learning_rates == RATES
    assert dict(ROBUST.fixed) == {
        "batch_size": 32, "max_length": 128, "weight_decay": 0.01, "warmup_fraction": 0.1,
        "clip_norm": 1.0, "max_train_examples": None, "is_sample": False, "random_init": False,
        "pooling": None,
    }  # fmt: skip
    assert {name: ROBUST.seeds(task) for name, task in TASKS.items()} == {
        name: (1, 2, 3) if name in {"mnli", "qqp"} else (1, 2, 3, 4, 5) for name in TASKS
    }
    ten = {"cola", "mrpc", "stsb", "rte"}
    assert {name: task.default_epochs for name, task in TASKS.items()} == {
        name: 10 if name in ten else 3 for name in TASKS
    }


def test_tiny_v1_is_as_it_was_published():
    tiny = PROTOCOLS["tiny-v1"]
    assert tiny.learning_rates == (3e-4, 6e-4, 1e-3)
    assert tiny.fixed == ROBUST.fixed | {"pooling": "mean"}
    assert tiny.tasks == ("cola", "sst2", "mrpc", "stsb", "rte")
    assert {tiny.seeds(TASKS[name]) for name in tiny.tasks} == {(1, 2, 3)}
    assert {name: tiny.epochs(TASKS[name]) for name in tiny.tasks} == {
        "cola": 5, "sst2": 1, "mrpc": 5, "stsb": 5, "rte": 5,
    }  # fmt: skip


def test_a_protocol_gives_the_epochs_and_the_pooling_that_are_not_chosen():
    tiny, cola = PROTOCOLS["tiny-v1"], TASKS["cola"]
    found = tiny.completed(FinetuneConfig(), cola)
    assert (found.epochs, found.shared_head) == (5, "mean")
    found = ROBUST.completed(FinetuneConfig(), cola)
    assert (found.epochs, found.shared_head) == (10, None)
    found = tiny.completed(FinetuneConfig(epochs=2, pooling="head"), cola)
    assert (found.epochs, found.shared_head) == (2, None)


def test_the_average_is_over_the_tasks_of_the_protocol():
    tiny = PROTOCOLS["tiny-v1"]
    runs = [
        run_of(name, seed=seed, learning_rate=rate, split=split, pooling="mean",
               epochs=tiny.epochs(TASKS[name]))
        for name in tiny.tasks
        for split, rate, seed in [
            *(("choice", rate, 0) for rate in tiny.learning_rates),
            *(("dev", 3e-4, seed) for seed in (1, 2, 3)),
        ]
    ]  # fmt: skip
    found = summarize([*runs, run_of("mnli")], "tiny-v1")
    assert (found.average, found.departures, list(found.tasks)) == (50.0, (), [*tiny.tasks])
    assert summarize(runs).average is None, "robust-v1 has eight tasks"
    assert "AVG over all 5 tasks: 50.00" in results_table(found)


def test_defaults_are_robust_v1_and_the_flag_knows_every_protocol():
    config = FinetuneConfig()
    same = ("batch_size", "max_length", "weight_decay", "warmup_fraction", "clip_norm")
    assert {key: getattr(config, key) for key in same} == {key: ROBUST.fixed[key] for key in same}
    assert set(typing.get_args(annotations_of(Options)["protocol"])) == set(PROTOCOLS)


def test_the_rate_is_chosen_on_train_and_dev_cannot_change_it():
    runs = robust_runs("cola")
    better_on_dev = run_of("cola", 0.99, seed=1, learning_rate=3e-4, epochs=10)
    found = summarize([*runs, better_on_dev]).tasks["cola"]
    assert found.learning_rates == (1e-4,), "the lower of two equally good ones"
    assert (found.num_runs, found.maximum) == (5, 50.0)
    trials = summarize([*runs, better_on_dev], "paper").tasks["cola"]
    assert (trials.num_runs, trials.score) == (6, 99.0)
    assert trials.best == better_on_dev


def test_robust_scores_means_and_paper_the_best_of_the_same_runs():
    runs = robust_runs("rte", scores=[0.25, 0.5, 0.875, 0.0, 0.0])
    robust, paper = summarize(runs), summarize(runs, "paper")
    assert robust.tasks["rte"].score == robust.tasks["rte"].mean == pytest.approx(162.5 / 5)
    assert paper.tasks["rte"].score == 87.5
    assert paper.tasks["rte"].num_runs == 5
    assert (robust.protocol, paper.protocol) == ("robust-v1", "paper")


def test_summary_equals_the_values_computed_by_hand():
    scores = [0.25, 0.5, 0.875]
    runs = [run_of(seed=seed, score=score) for seed, score in enumerate(scores)]
    runs.append(run_of(seed=9, score=0.0, failed=True))
    found = summarize(runs).tasks["cola"]
    assert found.mean == pytest.approx((25 + 50 + 87.5 + 0) / 4)
    # Deviations −15.625, 9.375, 46.875, −40.625; squares sum to 4179.6875, over n − 1 = 3.
    assert found.sd == pytest.approx(math.sqrt(4179.6875 / 3))
    assert (found.minimum, found.median, found.maximum) == (0.0, 37.5, 87.5)
    assert (found.num_runs, found.num_failed) == (4, 1)
    assert summarize(runs[:1]).tasks["cola"].sd is None


def test_average_is_the_plain_mean_of_all_eight_or_nothing():
    runs = [run_of(name, score=k / 10) for k, name in enumerate(TASKS)]
    runs.append(run_of("cola", score=0.2, seed=2))  # more seeds do not weigh more
    assert summarize(runs).average == pytest.approx((10 + sum(range(10, 80, 10))) / 8)
    seven = summarize([run for run in runs if run.settings.task != "rte"])
    assert seven.average is None
    assert seven.mean_of_present == pytest.approx((10 + sum(range(10, 70, 10))) / 7)


def test_every_deviation_from_the_protocol_is_reported():
    runs = [run for task in TASKS for run in robust_runs(task, seeds=TASKS[task].default_num_seeds)]
    assert summarize(runs).departures == ()
    for change, said in [
        ({"max_train_examples": 64}, "max_train_examples 64, not none"),
        ({"batch_size": 16}, "batch_size 16, not 32"),
        ({"max_length": 64}, "max_length 64, not 128"),
        ({"clip_norm": 2.0}, "clip_norm 2.0, not 1.0"),
        ({"epochs": 4}, "epochs 4, not 10 (cola, mrpc, stsb, rte)"),
        ({"random_init": True}, "random_init true, not false"),
        ({"is_sample": True}, "generated sample rows"),
    ]:
        changed = [replace(run, settings=replace(run.settings, **change)) for run in runs]
        assert said in summarize(changed).departures
    assert summarize(runs[:-1]).departures == ("seeds 1,2,3,4, not 1,2,3,4,5 (rte)",)
    assert summarize(runs[1:]).departures == (
        "learning_rate 0.0001,0.0002,0.0003, not 5e-05,0.0001,0.0002,0.0003 (cola)",
    )
    without_choice = [run for run in runs if run.settings.split == "dev"]
    assert "learning_rate 0.0001, not" in summarize(without_choice).departures[0]
    settings = [run.settings for run in runs]
    assert departures(ROBUST, reversed(settings)) == ()


def test_a_task_without_a_seed_yet_has_no_score():
    runs = robust_runs("cola") + robust_runs("rte")[:4]
    assert list(summarize(runs).tasks) == ["cola"]
    with pytest.raises(DataError, match="no seed of any task"):
        summarize(runs[-4:])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (run_of(), "two runs of cola have seed 1"),
        (run_of(seed=2, learning_rate=2e-4), "mix learning_rate 0.0001 and 0.0002.*=paper"),
        (run_of(seed=2, epochs=10), "mix epochs 3 and 10"),
        (run_of(seed=0, epochs=10, split="choice"), "mix epochs 10 and 3"),
        (run_of(seed=2, model="org/other", model_sha256="00"), "found: org/encoder, org/other"),
        (replace(run_of(seed=2), data_sha256={"dev": "00"}), "different data"),
    ],
)
def test_runs_that_are_not_repetitions_are_never_averaged(other, message):
    with pytest.raises(DataError, match=message):
        summarize([run_of(), other])


@pytest.mark.parametrize(
    ("runs", "protocol", "said"),
    [
        (robust_runs("cola"), "robust-v1", "mean over seeds; the learning rate was chosen on a"),
        ([run_of()], "robust-v1", "mean over seeds; one learning rate, not chosen\n"),
        ([run_of()], "tiny-v1", "mean over three seeds, mean pooling; one learning rate, not"),
        ([run_of()], "paper", "best dev score of all trials, chosen on dev itself\n"),
    ],
)
def test_the_table_says_how_the_rate_was_found(runs, protocol, said):
    assert results_table(summarize(runs, protocol)).startswith(f"{protocol}: {said}")


def test_results_table_is_as_printed():
    runs = robust_runs("cola", scores=[0.4, 0.5, 0.4, 0.5, 0.45])
    runs.append(run_of("stsb", score=0.825, epochs=10))
    assert results_table(summarize(runs)) == (
        "robust-v1: mean over seeds; the learning rate was chosen on a part of train, "
        "but not for STS-B\n"
        "\n"
        "| Task | Metric | Score | SD | Median | Min | Max | Runs | Failed | Learning rate |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        "| CoLA | matthews | 45.00 | 5.00 | 45.00 | 40.00 | 50.00 | 5 | 0 | 0.0001 |\n"
        "| STS-B | spearman | 82.50 | – | 82.50 | 82.50 | 82.50 | 1 | 0 | 0.0001 |\n"
        "\n"
        "AVG over all 8 tasks: – (missing: SST-2, MRPC, QQP, MNLI, QNLI, RTE). "
        "Mean over the 2 present: 63.75\n"
        "Unranked: learning_rate 0.0001, not 5e-05,0.0001,0.0002,0.0003 (stsb); "
        "seeds 1, not 1,2,3,4,5 (stsb)\n"
    )
    sample = [replace(run, settings=replace(run.settings, is_sample=True)) for run in runs]
    assert "*Sample*: scored on generated samples" in results_table(summarize(sample))
