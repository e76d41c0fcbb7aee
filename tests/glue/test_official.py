"""A run is ranked only on the official rows, whatever their order, source or file format."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from smallbench.glue import official
from smallbench.glue.official import (
    PINS,
    TRAIN_ROWS_IN_DEV,
    official_differences,
    order_difference,
    rows_in,
    rows_sha256,
)
from smallbench.glue.protocols import results_table, summarize
from smallbench.glue.results import read_run, run_directory, write_run
from smallbench.glue.samples import generate, write_sample_glue
from smallbench.glue.task_data import SAMPLE_MARKER, examples_from_hub, load_task, read_tsv
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.markdown_table import leaderboard_rows, render_markdown
from tests.glue.test_protocols import robust_runs
from tests.glue.test_task_data import hub_table

MRPC = TASKS["mrpc"]


def rewritten(source, target, task, split, change):
    """One file of `source` with its data lines changed, read again."""
    path = target / split.file
    lines = (source / task.directory / split.file).read_text().splitlines()
    head = [] if task.headerless and not split.is_test else [lines.pop(0)]
    path.write_text("\n".join([*head, *change(lines)]) + "\n")
    return read_tsv(task, split, path)


def shuffled(lines):
    return random.Random(1).sample(lines, len(lines))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_hash_is_of_the_rows_and_not_of_their_order_source_or_format(
    name, split, glue, tmp_path
):
    datasets = pytest.importorskip("datasets")
    task, place = TASKS[name], TASKS[name].split(split)
    source = glue / task.directory / place.file
    plain = read_tsv(task, place, source)
    turned = rewritten(glue, tmp_path, task, place, shuffled)
    assert rows_sha256(turned) == rows_sha256(plain)
    assert turned.sha256 != plain.sha256, "the other hash is of the order, too"

    file = tmp_path / "windows.tsv"
    text = "\ufeff" + source.read_text().replace("\n", "\r\n")
    file.write_bytes(text.removesuffix("\r\n").encode())
    assert rows_sha256(read_tsv(task, place, file)) == rows_sha256(plain)
    if not task.headerless:
        rows = [line.split("\t")[::-1] for line in source.read_text().splitlines()]
        file.write_text("".join("\t".join(row) + "\n" for row in rows))
        assert rows_sha256(read_tsv(task, place, file)) == rows_sha256(plain)

    names = None if task.label_names is None else task.label_names[::-1]
    table = hub_table(datasets, task, place, shuffled(generate(task)[split]), names)
    hub = examples_from_hub(task, place, table, label_names=names)
    assert rows_sha256(hub) == rows_sha256(plain)


def test_every_changed_row_changes_the_hash(glue):
    data = load_task(MRPC, glue).splits["dev"]
    seen = {rows_sha256(data)}
    for changed in (
        replace(data, first=(data.first[0] + "x", *data.first[1:])),
        replace(data, first=data.second, second=data.first),
        replace(data, labels=1 - data.labels),
        data.take(range(1, len(data)), split="dev"),
        data.take([0, *range(len(data))], split="dev"),
    ):
        seen.add(rows_sha256(changed))
    assert len(seen) == 6


def test_other_rows_than_the_official_ones_are_named(glue):
    splits = dict(load_task(MRPC, glue).splits)
    found = official_differences(MRPC, splits)
    assert found == (
        "MRPC train has 400 rows, the official split has 3,668",
        "MRPC dev has 100 rows, the official split has 408",
        "MRPC test has 100 rows, the official split has 1,725",
    )
    dev, train = splits["dev"], splits["train"]
    leaked = replace(
        train,
        first=(*train.first, *(text.upper() + "  " for text in dev.first)),
        second=(*train.second, *dev.second),
        labels=np.concatenate([train.labels, 1 - dev.labels]),
    )
    assert rows_in(leaked, dev).tolist() == list(range(400, 500))
    assert official_differences(MRPC, splits | {"train": leaked})[-1] == (
        "100 rows of MRPC train are also in dev, officially 0 "
        "(row 401, 402, 403, …, 498, 499, 500 of train)"
    )


def test_rows_of_train_in_dev_count_from_the_official_number_on(glue, monkeypatch):
    data = load_task(TASKS["qnli"], glue).splits
    dev, train = data["dev"], data["train"]
    for name, allowed in [("mrpc", 3), ("qnli", 2)]:  # 2 % of 100 rows where nothing is known
        monkeypatch.setattr(official, "TRAIN_ROWS_IN_DEV", {"mrpc": 3})
        for number in (allowed, allowed + 1):
            mixed = replace(train, first=dev.first[:number], second=dev.second[:number],
                            labels=dev.labels[:number])  # fmt: skip
            said = [
                r
                for r in official_differences(TASKS[name], {"train": mixed, "dev": dev})
                if "also" in r
            ]
            assert len(said) == (number > allowed)


def test_the_same_check_is_made_of_folders_and_of_the_hub(glue, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    shutil.copytree(glue / "MRPC", tmp_path / "MRPC")
    from_folder = load_task(MRPC, tmp_path)
    tables = datasets.DatasetDict({
        s.hub: hub_table(datasets, MRPC, s, generate(MRPC)[s.name], MRPC.label_names)
        for s in MRPC.splits
    })  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: tables)
    assert load_task(MRPC, "hub").unofficial == from_folder.unofficial
    assert len(from_folder.unofficial) == 3
    write_sample_glue(tmp_path / "samples")
    assert (tmp_path / "samples" / SAMPLE_MARKER).is_file()
    assert load_task(MRPC, tmp_path / "samples").unofficial == (), "samples say what they are"


# ---- what becomes of it


def unofficial_runs(*reasons):
    return [replace(run, unofficial=reasons) for run in robust_runs("mrpc")]


def test_unofficial_rows_are_unranked_in_every_table_and_in_the_stored_result(tmp_path):
    reason = "MRPC train has 88 rows, the official split has 3,668"
    runs = [*robust_runs("cola"), *unofficial_runs(reason)]
    for protocol in ("robust-v1", "paper"):
        summary = summarize(runs, protocol)
        assert reason in summary.departures
        assert f"Unranked: {'; '.join(summary.departures)}" in results_table(summary)
    assert summarize(robust_runs("cola")).departures == ()
    lines = render_markdown(leaderboard_rows(runs)).split("\n")
    assert "*unofficial*" in next(line for line in lines if "org/encoder" in line)
    assert any(reason in line and "Unranked" in line for line in lines)

    directory = run_directory(tmp_path, runs[-1].settings)
    write_run(directory, runs[-1], {})
    assert json.loads((directory / "result.json").read_text())["unofficial"] == [reason]
    assert read_run(directory) == runs[-1]


def test_a_row_of_unofficial_data_stands_below_all_others():
    every = [run for name in TASKS for run in robust_runs(name, scores=[0.99] * 5)]
    marked = [replace(run, unofficial=("CoLA dev has 1 rows",)) for run in every]
    assert "org/encoder" in leaderboard_rows(every)[0].name
    assert "org/encoder" in leaderboard_rows(marked)[-1].name


# ---- the official files


@pytest.mark.real_data
@pytest.mark.parametrize("name", PINS)
def test_the_official_files_pass_and_nothing_else(name, test_data, tmp_path):
    task, glue = TASKS[name], test_data / "glue"
    data = load_task(task, glue)
    known = {split: data.splits[split] for split in PINS[name]}
    assert official_differences(task, known) == ()
    if name in TRAIN_ROWS_IN_DEV:
        assert data.unofficial == ()
        assert len(rows_in(known["train"], known["dev"])) == TRAIN_ROWS_IN_DEV[name]
    assert order_difference(task, task.split("dev"), known["dev"].sha256) is None
    for split in PINS[name]:
        place, examples = task.split(split), known[split]
        turned = examples if place.is_test else rewritten(glue, tmp_path, task, place, shuffled)
        assert official_differences(task, {split: turned}) == ()
        other = replace(examples, first=(examples.first[0] + "!", *examples.first[1:]))
        assert "not the official content" in official_differences(task, {split: other})[0]
        fewer = examples.take(range(1, len(examples)), split=split)
        assert "the official split has" in official_differences(task, {split: fewer})[0]
    turned = known["dev"].take(range(len(known["dev"]))[::-1], split="dev")
    assert "official order" in order_difference(task, task.split("dev"), turned.sha256)


@pytest.mark.real_data
def test_the_hub_s_rows_of_the_official_files_pass(test_data):
    datasets = pytest.importorskip("datasets")
    for name in ("mrpc", "stsb", "rte"):
        task = TASKS[name]
        data = load_task(task, test_data / "glue")
        for place in (task.split("train"), task.split("dev")):
            examples = data.splits[place.name]
            seconds = examples.second or ("",) * len(examples)
            spelled = task.file_labels
            words = [
                f"{x:.3f}" if spelled is None else spelled[x] for x in examples.labels.tolist()
            ]
            rows = [
                ((a + " ", b), w) for a, b, w in zip(examples.first, seconds, words, strict=True)
            ]
            table = hub_table(datasets, task, place, rows, task.label_names)
            hub = examples_from_hub(task, place, table, label_names=task.label_names)
            assert official_differences(task, {place.name: hub}) == ()
