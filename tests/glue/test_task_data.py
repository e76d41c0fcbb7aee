"""The official files' quirks, and that every source gives the same rows."""

import os
from pathlib import Path

import numpy as np
import pytest

from smallbench.errors import DataError, UnavailableError
from smallbench.glue.samples import generate, write_sample_glue
from smallbench.glue.task_data import (
    MAX_SKIPPED,
    available_tasks,
    examples_from_hub,
    load_task,
    read_tsv,
)
from smallbench.glue.tasks import TASKS

COLA, SST2, MRPC, STSB = (TASKS[name] for name in ("cola", "sst2", "mrpc", "stsb"))
QQP, MNLI, RTE = (TASKS[name] for name in ("qqp", "mnli", "rte"))
MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
MNLI_HEADER = "\t".join(
    ["index", "promptID", "pairID", "genre", "p1", "p2", "p3", "p4", "sentence1", "sentence2"]
    + [f"label{n}" for n in range(1, 6)]
    + ["gold_label\n"]
)


def read(tmp_path, task, content, split="train"):
    path = tmp_path / task.split(split).file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_tsv(task, task.split(split), path)


def test_quotes_are_characters(tmp_path):
    rows = '1\t1\t2\t" A b .\tHe said " c " .\n0\t3\t4\tAn "open\tquote .\n'
    examples = read(tmp_path, MRPC, MRPC_HEADER + rows)
    assert examples.first == ('" A b .', 'An "open')
    assert examples.second == ('He said " c " .', "quote .")
    assert examples.labels.tolist() == [1, 0]
    assert len(examples) == 2


def test_bom_crlf_and_a_missing_final_newline_change_nothing(tmp_path):
    plain = MRPC_HEADER + "1\t1\t2\ta b\tc d\n0\t3\t4\te\tf\n"
    expected = read(tmp_path, MRPC, plain)
    for variant in (
        "\ufeff" + plain,
        plain.replace("\n", "\r\n"),
        plain.removesuffix("\n"),
        "\ufeff" + plain.replace("\n", "\r\n").removesuffix("\r\n"),
    ):
        examples = read(tmp_path, MRPC, variant)
        assert examples.sha256 == expected.sha256
        assert examples.second == expected.second
        assert len(examples) == 2


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_ends_end_a_line(tmp_path, mark):
    examples = read(tmp_path, SST2, f"sentence\tlabel\none{mark}two\t1\n")
    assert examples.first == (f"one{mark}two",)


def test_cola_has_no_header_in_train_and_dev_but_one_in_test(tmp_path):
    rows = "gj04\t1\t\tThe car honked.\ngj04\t0\t*\tThe car honk down.\n"
    for split in ("train", "dev"):
        examples = read(tmp_path, COLA, rows, split)
        assert examples.first == ("The car honked.", "The car honk down.")
        assert examples.second is None
        assert examples.labels.tolist() == [1, 0]
    test = read(tmp_path, COLA, "index\tsentence\n0\tBill whistled.\n1\tIt is.\n", "test")
    assert test.first == ("Bill whistled.", "It is.")
    assert test.labels is None


def test_columns_are_found_by_name(tmp_path):
    turned = "#2 String\tnew\t#1 String\tQuality\n" + "b\tx\ta\t1\n"
    examples = read(tmp_path, MRPC, turned)
    assert (examples.first, examples.second) == (("a",), ("b",))
    missing = "sentence\tlabels\nx\t1\n"
    with pytest.raises(DataError, match=r"line 1: no column label .*sentence, label"):
        read(tmp_path, SST2, missing)


def test_mnli_takes_the_gold_label_of_12_and_16_columns(tmp_path):
    wide = MNLI_HEADER + "0\t-\t-\t-\t-\t-\t-\t-\tA.\tB.\t-\t-\t-\t-\t-\tcontradiction\n"
    assert read(tmp_path, MNLI, wide, "dev_mismatched").labels.tolist() == [2]
    narrow = MNLI_HEADER.replace("label2\tlabel3\tlabel4\tlabel5\t", "")
    row = "0\t-\t-\t-\t-\t-\t-\t-\tA.\tB.\tneutral\tentailment\n"
    assert read(tmp_path, MNLI, narrow + row).labels.tolist() == [0]
    with pytest.raises(DataError, match="line 2: label '-', expected one of: entailment"):
        read(tmp_path, MNLI, narrow + row.replace("entailment", "-"))


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        (SST2, "sentence\tlabel\na\t1\n\nb\t0\n", r"train.tsv, line 3: blank line, expected 2"),
        (SST2, "sentence\tlabel\na\t1\nb\n", r"line 3: 1 columns, expected 2: sentence, label"),
        (SST2, "sentence\tlabel\na\tb\t1\n", r"line 2: 3 columns"),
        (SST2, "sentence\tlabel\na\t2\n", r"line 2: label '2', expected one of: 0, 1"),
        (SST2, "sentence\tlabel\na\tpositive\n", r"label 'positive'"),
        (SST2, "sentence\tlabel\n \t1\n", r"line 2: no text"),
        (SST2, "sentence\tlabel\n", r"has no rows"),
        (SST2, "", r"line 1: no column sentence, label"),
        (SST2, b"sentence\tlabel\n\xff\xfe\t1\n", r"not UTF-8.*official file, unpacked"),
        (COLA, "gj04\t1\t\tA.\ngj04\t1\tB.\n", r"line 2: 3 columns, expected 4: source, label"),
        (STSB, "sentence1\tsentence2\tscore\na\tb\t5.1\n", r"line 2: score 5.1"),
        (STSB, "sentence1\tsentence2\tscore\na\tb\tnan\n", r"score 'nan'"),
        (STSB, "sentence1\tsentence2\tscore\na\tb\thigh\n", r"score 'high'"),
        (RTE, "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", r"label '1'.*not_entailment"),
    ],
)
def test_damaged_rows_name_file_line_and_columns(tmp_path, task, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, task, content)


def test_rows_that_the_official_qqp_file_breaks_are_counted(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = "1\t2\t3\tWho ?\tWhy ?\t0\n4\t5\t6\tWhere is\nit ?\tWhere ?\t1\n7\t8\t9\tA ?\t\t1\n"
    examples = read(tmp_path, QQP, header + rows)
    assert examples.first == ("Who ?", "A ?")
    assert examples.second == ("Why ?", "")
    assert len(examples) == 2
    assert examples.num_skipped == 2
    with pytest.raises(DataError, match="this one is damaged"):
        read(tmp_path, QQP, header + rows + "a ?\n" * (MAX_SKIPPED + 1))


def test_test_indices_must_be_contiguous(tmp_path):
    with pytest.raises(DataError, match="line 3: index '2', expected 1"):
        read(tmp_path, SST2, "index\tsentence\n0\ta\n2\tb\n", "test")


def test_missing_folders_and_files_say_what_is_expected(tmp_path):
    with pytest.raises(
        DataError, match=r"SST-2/ does not exist; expected SST-2/ with train.tsv, dev"
    ):
        load_task(SST2, tmp_path)
    with pytest.raises(DataError, match="no GLUE task; expected folders among: CoLA/"):
        available_tasks(tmp_path)
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/train.tsv").write_text("sentence\tlabel\na\t1\n")
    with pytest.raises(DataError, match=r"dev.tsv is missing"):
        load_task(SST2, tmp_path)
    (tmp_path / "SST-2/dev.tsv").write_text("sentence\tlabel\na\t1\n")
    data = load_task(SST2, tmp_path)
    assert list(data.splits) == ["train", "dev"]
    assert not data.is_sample
    assert available_tasks(tmp_path) == ("sst2",)
    (tmp_path / "SST-2/test.tsv").symlink_to("nowhere.tsv")
    with pytest.raises(DataError, match=r"test.tsv is not a regular file, or a broken link"):
        load_task(SST2, tmp_path)


# ---- hub and folder


def hub_table(datasets, task, split, examples, label_names):
    """Examples as the hub stores them: classes as numbers, scores as 32-bit floats, -1 in test."""
    columns = {
        name: [texts[position] for texts, _ in examples]
        for position, name in enumerate(task.hub_texts)
    }
    if label_names is None:
        kind = datasets.Value("float32")
        labels = [-1.0 if split.is_test else float(label) for _, label in examples]
    else:
        kind = datasets.ClassLabel(names=list(label_names))
        words = [task.label_names[task.file_labels.index(label)] for _, label in examples]
        labels = [-1 if split.is_test else label_names.index(word) for word in words]
    features = {name: datasets.Value("string") for name in columns} | {"label": kind}
    return datasets.Dataset.from_dict(
        {**columns, "label": labels}, features=datasets.Features(features)
    )


@pytest.mark.parametrize("name", TASKS)
def test_hub_and_folder_give_the_same_rows_and_hashes(name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    task = TASKS[name]
    write_sample_glue(tmp_path)
    from_folder = load_task(task, tmp_path)
    examples = generate(task)
    # A source's own label order must not matter.
    names = None if task.label_names is None else task.label_names[::-1]
    tables = {name: datasets.DatasetDict(), "ax": datasets.DatasetDict()}
    for s in task.splits:
        table = hub_table(datasets, task, s, examples[s.name], names)
        tables[s.hub_config or name][s.hub] = table
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs["revision"]))
        return tables[args[1]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = load_task(task, "hub")
    assert ("nyu-mll/glue", name) in [where for where, _ in asked]
    assert len(asked[0][1]) == 40
    assert from_hub.sha256 == from_folder.sha256
    assert not from_hub.is_sample
    for split, expected in from_folder.splits.items():
        found = from_hub.splits[split]
        assert (found.first, found.second) == (expected.first, expected.second)
        if expected.labels is None:
            assert found.labels is None
        else:
            assert found.labels.dtype == expected.labels.dtype
            assert np.array_equal(found.labels, expected.labels)


def test_an_unreachable_hub_names_the_remedy(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UnavailableError, match="no route; check the network, or set --glue to a"):
        load_task(RTE, "hub")


def test_foreign_hub_labels_are_refused():
    row = [{"sentence1": "a", "sentence2": "b", "label": 0}]
    with pytest.raises(DataError, match="has labels"):
        examples_from_hub(RTE, RTE.split("dev"), row, label_names=["yes", "no"])
    row[0]["label"] = -1
    with pytest.raises(DataError, match="row 0: label -1"):
        examples_from_hub(RTE, RTE.split("dev"), row, label_names=RTE.label_names)


def test_every_changed_value_changes_the_hash(tmp_path):
    base = MRPC_HEADER + "1\t1\t2\ta b\tc\n0\t1\t2\td\te\n"
    variants = [
        base,
        base.replace("1\t1\t2\ta", "0\t1\t2\ta"),
        base.replace("a b\tc", "a\tb c"),
        MRPC_HEADER + "0\t1\t2\td\te\n1\t1\t2\ta b\tc\n",
        MRPC_HEADER + "1\t1\t2\ta b\tc\n",
    ]
    assert len({read(tmp_path, MRPC, text).sha256 for text in variants}) == len(variants)


# ---- real files


@pytest.mark.real_data
@pytest.mark.parametrize("name", TASKS)
def test_official_files_have_the_official_number_of_rows(name):
    root = os.environ.get("SMALLBENCH_TEST_DATA")
    if not root:
        pytest.skip("SMALLBENCH_TEST_DATA names no folder of real data")
    task, glue = TASKS[name], Path(root) / "glue"
    if not (glue / task.directory).is_dir():
        pytest.skip(f"no {task.directory} in {glue}")
    data = load_task(task, glue)
    assert not data.is_sample
    for split, examples in data.splits.items():
        expected = task.split(split).num_rows
        if split == "train" and len(examples) < expected and name == "mnli":
            continue  # this copy's MNLI train file may be a part of the official one
        assert len(examples) == expected, split
        if examples.labels is not None and not task.is_regression:
            assert set(examples.labels.tolist()) == set(range(task.num_labels))
