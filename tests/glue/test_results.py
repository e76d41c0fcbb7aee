"""Stored runs: they can be read again, and every number can be recomputed."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from smallbench.errors import ConfigError, DataError
from smallbench.glue.protocols import summarize
from smallbench.glue.results import (
    find_run,
    group_runs,
    read_predictions,
    read_run,
    read_runs,
    run_directory,
    score_run,
    write_run,
)
from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import TaskData, load_task
from smallbench.glue.tasks import TASKS
from tests.glue.runs import check_run, run_of, settings_of


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples")
    write_sample_glue(directory)
    return directory


def predictions_for(task, data, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {name: len(data.splits[name]) for name in (*task.dev_splits, "test")}
    if task.is_regression:
        return {name: rng.uniform(0, 5, size) for name, size in sizes.items()}
    return {name: rng.integers(0, task.num_labels, size) for name, size in sizes.items()}


@pytest.mark.parametrize("name", TASKS)
def test_metrics_recomputed_from_stored_predictions_are_equal_to_the_last_bit(
    name, samples, tmp_path
):
    task, data = TASKS[name], load_task(TASKS[name], samples)
    predictions = predictions_for(task, data)
    settings = settings_of(name, is_sample=data.is_sample)
    result = score_run(settings, data, predictions, seconds=1.5, examples_per_second=800.0)
    directory = run_directory(tmp_path, settings)
    write_run(directory, result, predictions)
    assert read_run(directory) == result == check_run(directory, data)
    assert find_run(directory, settings, data) == result
    for split, values in predictions.items():
        stored = read_predictions(directory, task, split)
        assert stored.dtype == values.dtype
        assert np.array_equal(stored, values)


def test_run_folders_are_named_by_rate_epochs_and_seed(tmp_path):
    names = {
        1e-4: "lr-1e-04_epochs-3_seed-1",
        1.5e-4: "lr-1.5e-04_epochs-3_seed-1",
        0.00025: "lr-2.5e-04_epochs-3_seed-1",
        2e-5: "lr-2e-05_epochs-3_seed-1",
    }
    for rate, name in names.items():
        expected = tmp_path / "runs/cola" / name
        assert run_directory(tmp_path, settings_of(learning_rate=rate)) == expected


def write(out, run):
    directory = run_directory(out, run.settings)
    write_run(directory, run, {})
    return directory


def test_runs_are_read_back_and_unfinished_ones_do_not_count(tmp_path):
    runs = [run_of("cola", seed=1), run_of("cola", seed=2), run_of("rte", seed=1)]
    for run in reversed(runs):
        write(tmp_path, run)
    unfinished = tmp_path / "runs/rte/lr-1e-04_epochs-3_seed-9"
    unfinished.mkdir()
    (unfinished / "dev.tsv").write_text("index\tprediction\n")
    assert read_runs(tmp_path) == runs


def test_an_older_result_is_gone_while_predictions_are_replaced(tmp_path, monkeypatch):
    directory = write(tmp_path, run_of())

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("smallbench.glue.results.files.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_run(directory, run_of(score=0.9), {"dev": np.array([1])})
    assert find_run(directory, settings_of()) is None


def test_a_stored_run_is_never_mistaken_for_another(tmp_path):
    directory = write(tmp_path, run_of())
    with pytest.raises(ConfigError, match=r"batch_size=32, expected 16; choose another --out"):
        find_run(directory, settings_of(batch_size=16))
    with pytest.raises(ConfigError, match="on other data"):
        find_run(directory, settings_of(), TaskData(TASKS["cola"], "", {}, is_sample=False))
    moved = directory.rename(directory.with_name("lr-1e-04_epochs-3_seed-7"))
    with pytest.raises(DataError, match=f"{moved.name}.* is the result of .*seed-1"):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("format"), "expected .smallbench-glue-run-3"),
        (lambda c: c.pop("splits"), "missing key 'splits'"),
        (lambda c: c["settings"].pop("seed"), "missing key 'settings.seed'"),
        (lambda c: c["settings"].update(sede=1), "unknown key 'settings.sede'"),
        (lambda c: c["settings"].update(seed=1.5), "settings.seed: 1.5 .expected an integer"),
        (lambda c: c["settings"].update(task="wnli"), "Task 'wnli' is not measured"),
        (lambda c: c["settings"].update(split="../dev"), "expected dev or choice"),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c["splits"]["dev"]["metrics"].pop("matthews"), "dev has no matthews"),
        (lambda c: c["splits"]["dev"]["metrics"].update(matthews=math.nan), "metrics: .*nan"),
        (lambda c: c["splits"]["dev"].update(num_examples="many"), "num_examples: 'many'"),
        (lambda c: c.update(settings=[]), "result.json is not the result"),
        (lambda c: c.update(data_sha256=[]), "result.json is not the result"),
    ],
)
def test_damaged_results_are_refused_by_name(change, message, tmp_path):
    directory = write(tmp_path, run_of())
    content = json.loads((directory / "result.json").read_text())
    change(content)
    (directory / "result.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=f"seed-1/result.json is not the result.*{message}|{message}"
    ):
        read_runs(tmp_path)


def test_cut_off_files_are_refused_by_name(samples, tmp_path):
    task, data = TASKS["cola"], load_task(TASKS["cola"], samples)
    predictions = predictions_for(task, data)
    result = score_run(settings_of(), data, predictions, seconds=1.0, examples_per_second=1.0)
    directory = run_directory(tmp_path, settings_of())

    def damaged(edit):
        write_run(directory, result, predictions)
        path = directory / "dev.tsv"
        path.write_text(edit(path.read_text()))
        return directory

    with pytest.raises(DataError, match=r"dev.tsv is truncated"):
        check_run(damaged(lambda text: text[:-3]), data)
    with pytest.raises(DataError, match="one prediction for each example"):
        check_run(damaged(lambda text: "\n".join(text.split("\n")[:50]) + "\n"), data)
    with pytest.raises(DataError, match=r"dev.tsv, line 2: .*expected 0<TAB>unacceptable"):
        check_run(damaged(lambda text: text.replace("0\t", "0\tmaybe ", 1)), data)
    with pytest.raises(DataError, match=r"line 5: .*expected 3<TAB>"):
        check_run(damaged(lambda text: text.replace("\n3\t", "\n4\t", 1)), data)

    def flip(text):
        head, zero, rest = text.partition("0\t")
        word, _, rest = rest.partition("\n")
        other = "acceptable" if word == "unacceptable" else "unacceptable"
        return f"{head}{zero}{other}\n{rest}"

    with pytest.raises(AssertionError):  # one other answer changes the metrics
        check_run(damaged(flip), data)
    write_run(directory, result, predictions)
    (directory / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result.json is not the result"):
        check_run(directory, data)


def test_a_folder_without_runs_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"has no finished runs .*'smallbench glue'"):
        read_runs(tmp_path)


def test_the_same_weights_under_another_name_are_the_same_model(tmp_path):
    first, second = run_of(seed=1, model="m"), run_of(seed=2, model="/home/me/m")
    directory = write(tmp_path, first)
    found = find_run(directory, settings_of(model="/home/me/m"))
    assert found == replace(first, settings=settings_of(model="/home/me/m"))
    assert read_run(directory) == found, "it is stored under the new name"
    assert len(group_runs([first, second])) == 1
    with pytest.raises(ConfigError, match=r"model_sha256=.*it is of /home/me/m, not of n"):
        find_run(directory, settings_of(model="n", model_sha256="cd" * 32))


RANDOM = {"model_sha256": "", "random_init": True}


@pytest.mark.parametrize("weights", [{}, RANDOM], ids=["trained", "random"])
def test_equal_weights_with_another_configuration_are_another_model(weights, tmp_path):
    directory = write(tmp_path, run_of(**weights, files_sha256="ab"))
    with pytest.raises(ConfigError, match=r"files_sha256='ab', expected 'cd' .*tokenizer"):
        find_run(directory, settings_of(**weights, files_sha256="cd"))
    runs = [run_of(**weights, seed=seed, files_sha256=sha) for seed, sha in enumerate(("ab", "cd"))]
    assert len(group_runs(runs)) == 2
    with pytest.raises(DataError, match="one model"):
        summarize(runs)


def test_random_weights_of_the_same_files_may_have_several_names(tmp_path):
    directory = write(tmp_path, run_of(**RANDOM, files_sha256="ab", model="m"))
    wanted = settings_of(**RANDOM, files_sha256="ab", model="n")
    assert find_run(directory, wanted).settings == wanted
