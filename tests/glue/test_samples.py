"""Generated stand-ins: marked, repeatable, disjoint, and learnable without a network."""

import json
import re

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from smallbench.errors import DataError
from smallbench.glue.metrics import compute_metrics, is_failed_run
from smallbench.glue.samples import generate, write_sample_glue
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS


def tree(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")}


def test_same_seed_same_bytes_other_seed_other_sentences(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_sample_glue(tmp_path / name, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a")["CoLA/train.tsv"] != tree(tmp_path / "c")["CoLA/train.tsv"]
    write_sample_glue(tmp_path / "a")  # writing again is allowed, and changes nothing
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_samples_say_that_they_are_not_glue(tmp_path):
    write_sample_glue(tmp_path)
    assert json.loads((tmp_path / "SAMPLE.json").read_text())["is_glue"] is False
    assert "NOT GLUE" in (tmp_path / "README.md").read_text()


def test_samples_never_overwrite_what_may_be_glue(tmp_path):
    (tmp_path / "MRPC").mkdir()
    with pytest.raises(DataError, match="may be real GLUE"):
        write_sample_glue(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["MRPC"]


@pytest.mark.parametrize("name", TASKS)
def test_no_texts_occur_twice(name):
    texts = [texts for examples in generate(TASKS[name]).values() for texts, _ in examples]
    assert len(set(texts)) == len(texts) >= 600


def features(first, second):
    """Words and neighbours of each text, words of both, and words of the second one only."""
    words = [re.findall(r"\w+", text.lower()) for text in (first, second or "")]
    found = {}
    for side, of_side in enumerate(words):
        for one, two in zip(["^", *of_side], of_side, strict=False):
            found[f"{side} {two}"] = found[f"{side} {one} {two}"] = 1.0
    if second:
        common = set(words[0]) & set(words[1])
        found |= {"common": len(common) / 4, "only second": len(set(words[1]) - common) / 4}
        for one in words[0][:1]:  # a question's first word decides what answers it
            found |= {f"{one} × {two}": 1.0 for two in words[1]}
    return found


def rows(examples):
    seconds = examples.second or [None] * len(examples)
    return [features(*pair) for pair in zip(examples.first, seconds, strict=True)]


@pytest.mark.parametrize("name", TASKS)
def test_a_linear_model_learns_every_task_above_chance(name, tmp_path):
    task = TASKS[name]
    write_sample_glue(tmp_path)
    data = load_task(task, tmp_path)
    train, dev = data.splits["train"], data.splits["dev"]
    vectorizer = DictVectorizer()
    inputs = vectorizer.fit_transform(rows(train))
    model = Ridge(3.0) if task.is_regression else LogisticRegression(C=1.0, max_iter=2000)
    predictions = model.fit(inputs, train.labels).predict(vectorizer.transform(rows(dev)))
    score = compute_metrics(task, predictions, dev.labels)[task.ranking_metric]
    assert not is_failed_run(task, np.asarray(predictions), dev.labels)
    if task.ranking_metric == "accuracy":
        majority = np.bincount(dev.labels).max() / len(dev)
        assert score > majority + 0.1, (score, majority)
    else:
        assert score > 0.3
