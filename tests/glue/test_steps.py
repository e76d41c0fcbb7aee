"""Scores of a run's checkpoints: which stored measurement of a step counts."""

from itertools import permutations

import pytest

from smallbench.errors import DataError
from smallbench.glue.results import run_directory, write_run
from smallbench.glue.steps import result_folders, scores_by_step, step_folder
from tests.glue.runs import run_of


def stored(out, *scores, step=1_000, task="cola", rates=(1e-4,), **changes):
    """A folder with a run of each score and rate, of one checkpoint."""
    for seed, score in enumerate(scores, 1):
        for rate in rates:
            name = f"m (run a1, step {step:,})"
            run = run_of(task, score, seed=seed, learning_rate=rate, model=name, **changes)
            write_run(run_directory(out, run.settings), run, {})
    return out


def test_of_two_measurements_of_a_step_the_one_with_more_runs_counts(tmp_path):
    places = [
        stored(tmp_path / "way" / "step-0000001000", 0.1).parent,
        stored(tmp_path / "whole", 0.3, 0.4, 0.5),
        stored(tmp_path / "look", 0.2),
    ]
    for order in permutations(places):
        scores, tasks = scores_by_step(order)
        assert scores == {"a1": {1_000: pytest.approx(40.0)}}
        assert tasks == ["CoLA"]


def test_equally_many_runs_with_other_scores_are_refused_by_both_names(tmp_path):
    one, other = stored(tmp_path / "one", 0.1), stored(tmp_path / "other", 0.2)
    with pytest.raises(DataError, match=r"/one and \S+/other have other scores of the same step"):
        scores_by_step([one, other])
    assert scores_by_step([one, one])[0] == {"a1": {1_000: pytest.approx(10.0)}}


def test_random_weights_are_no_checkpoints_score(tmp_path):
    place = stored(tmp_path, 0.1, random_init=True, model_sha256="")
    with pytest.raises(DataError, match="results of random weights, not of a checkpoint"):
        scores_by_step([place])


def test_a_score_is_that_of_the_given_protocol(tmp_path):
    place = stored(tmp_path, 0.1, 0.3, rates=(1e-4, 2e-4))
    assert scores_by_step([place], "paper")[0] == {"a1": {1_000: pytest.approx(30.0)}}
    with pytest.raises(DataError, match="--protocol=paper shows the best of them"):
        scores_by_step([place])


def test_a_folder_has_runs_of_its_own_and_of_steps(tmp_path):
    assert result_folders(tmp_path) == {None: tmp_path}
    (tmp_path / "step-0000000003/locks").mkdir(parents=True)
    assert result_folders(tmp_path) == {None: tmp_path}, "a step without runs"
    steps = {step: stored(tmp_path / f"step-{step:010d}", 0.1, step=step) for step in (1, 2)}
    assert result_folders(tmp_path) == steps
    assert str(steps[1]) == step_folder(str(tmp_path), 1)
    stored(tmp_path, 0.1)
    assert result_folders(tmp_path) == {None: tmp_path, **steps}
