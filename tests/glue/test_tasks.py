"""One contract for every row of the task table."""

import pytest

from smallbench.errors import ConfigError
from smallbench.glue.metrics import compute_metrics
from smallbench.glue.samples import write_sample_glue
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS, task_named


def test_columns_are_the_papers_in_its_order():
    columns = [task.column for task in TASKS.values()]
    assert columns == ["CoLA", "SST", "MRPC", "STS", "QQP", "MNLI", "QNLI", "RTE"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples")
    write_sample_glue(directory)
    return directory


@pytest.mark.parametrize("name", TASKS)
def test_every_task_fits_the_rest_of_the_package(name, samples):
    task = TASKS[name]
    assert task.name == name == name.lower()
    assert len(task.hub_texts) == len(task.tsv_texts) in (1, 2)
    names = [split.name for split in task.splits]
    assert names[:2] == ["train", "dev"]
    assert "test" in names
    assert len(set(names)) == len(names)
    assert task.dev_splits[0] == "dev"
    assert all(split.num_rows > 0 for split in task.splits)
    assert all(split.is_test == split.name.startswith("test") for split in task.splits)
    assert task.default_epochs == (3 if task.split("train").num_rows > 50_000 else 10)
    assert task.default_num_seeds == (3 if name in {"qqp", "mnli"} else 5)
    if task.label_names is None:
        assert task.num_labels == 1
        assert task.file_labels is None
    else:
        assert task.num_labels == len(task.file_labels) == len(set(task.label_names)) >= 2
    data = load_task(task, samples)
    assert data.is_sample
    for split in task.dev_splits:
        labels = data.splits[split].labels
        metrics = compute_metrics(task, labels, labels)
        assert tuple(metrics) == task.metrics
        assert list(metrics.values()) == pytest.approx([1.0] * len(metrics))
    assert data.splits["test"].labels is None


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(ConfigError, match="did you mean 'sst2'"):
        task_named("sst-2")
    with pytest.raises(ConfigError, match="did you mean 'dev'"):
        task_named("cola").split("devv")
