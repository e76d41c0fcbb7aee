"""The submission has exactly the server's layout."""

import zipfile

import numpy as np
import pytest

from smallbench.errors import DataError
from smallbench.glue.results import run_directory, score_run, write_run
from smallbench.glue.submission import (
    FILES,
    check_submission,
    check_submission_file,
    submission_text,
    write_submission,
)
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from tests.glue.runs import run_of, settings_of

NAMES = ("entailment", "neutral", "contradiction")
LAYOUT = {  # Rows and values as https://gluebenchmark.com/faq and the official data have them.
    "CoLA.tsv": (1063, {"0", "1"}),
    "SST-2.tsv": (1821, {"0", "1"}),
    "MRPC.tsv": (1725, {"0", "1"}),
    "STS-B.tsv": (1379, None),
    "QQP.tsv": (390965, {"0", "1"}),
    "MNLI-m.tsv": (9796, set(NAMES)),
    "MNLI-mm.tsv": (9847, set(NAMES)),
    "QNLI.tsv": (5463, {"entailment", "not_entailment"}),
    "RTE.tsv": (3000, {"entailment", "not_entailment"}),
    "WNLI.tsv": (146, {"0", "1"}),
    "AX.tsv": (1104, set(NAMES)),
}


def predictions_of(task, seed):
    """Random ones for each test split, of the official size."""
    rng = np.random.default_rng(seed)
    sizes = {split.name: split.num_rows for split in task.splits if split.is_test}
    if task.is_regression:
        return {name: rng.normal(2.5, 2.0, size) for name, size in sizes.items()}
    return {name: rng.integers(0, task.num_labels, size) for name, size in sizes.items()}


def write_runs(out, names=tuple(TASKS)):
    """Two seeds of each task, the second better on dev."""
    for name in names:
        for seed in (1, 2):
            run = run_of(name, score=seed / 4, seed=seed)
            directory = run_directory(out, run.settings)
            write_run(directory, run, predictions_of(TASKS[name], seed))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A submission of made-up runs of all tasks."""
    folder = tmp_path_factory.mktemp("submission")
    write_runs(folder / "glue")
    report = write_submission(folder / "glue", folder / "glue.zip", protocol="robust-v1")
    return folder / "glue.zip", report


@pytest.fixture
def tampered(made, tmp_path):
    """The same zip with some files' texts changed."""

    def tamper(changes):
        path = tmp_path / "tampered.zip"
        with zipfile.ZipFile(made[0]) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                text = source.read(name).decode()
                change = changes.get(name, lambda text: text)(text)
                if change is not None:
                    target.writestr(name, change)
            for name in set(changes) - set(source.namelist()):
                target.writestr(name, changes[name](""))
        return path

    return tamper


def test_the_zip_unpacks_to_the_official_layout(made, tmp_path):
    path, report = made
    with zipfile.ZipFile(path) as pack:
        pack.extractall(tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == set(LAYOUT)
    for name, (num_rows, values) in LAYOUT.items():
        lines = (tmp_path / name).read_text().split("\n")
        assert lines[0] == "index\tprediction"
        assert lines[-1] == ""
        rows = [line.split("\t") for line in lines[1:-1]]
        assert [row[0] for row in rows] == [str(i) for i in range(num_rows)]
        found = {row[1] for row in rows}
        if values is None:
            assert all(0 <= float(value) <= 5 and value[1] == "." and len(value) == 5
                       for value in found)  # fmt: skip
            assert {"0.000", "5.000"} < found, "clipped"
        elif name == "WNLI.tsv":
            assert found == {"0"}
        else:
            assert found == values
    assert check_submission(path) == f"{path}: all 11 files are as the server expects them"
    assert "WNLI.tsv: class 0 everywhere" in report
    assert "Missing" not in report
    assert path.with_suffix(".txt").read_text() == report + "\n"


def test_predictions_are_those_of_the_best_dev_run_under_their_names(made):
    with zipfile.ZipFile(made[0]) as pack:
        files = {name: pack.read(name).decode() for name in pack.namelist()}
    for task in TASKS.values():
        for split, values in predictions_of(task, seed=2).items():
            text = files[task.split(split).submission]
            assert text == submission_text(task, values)
    first_class = predictions_of(TASKS["mnli"], seed=2)["test_ax"][0]
    assert files["AX.tsv"].split("\n")[1] == f"0\t{NAMES[first_class]}"


def test_the_same_runs_give_the_same_bytes(made, tmp_path):
    again = tmp_path / "again.zip"
    write_submission(made[0].parent / "glue", again, protocol="robust-v1")
    assert again.read_bytes() == made[0].read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("CoLA.tsv", lambda text: text + "1063\t1\n", "1,064 predictions for CoLA.tsv.* 1,063"),
        ("QQP.tsv", lambda text: text[: text.rindex("\n", 0, -1) + 1], "390,964 predictions"),
        ("MRPC.tsv", lambda text: text.replace("\n0\t", "\n0\t2", 1), "line 2: .*<TAB>0 or 1"),
        ("MNLI-m.tsv", lambda text: text.replace("neutral", "1"), "entailment or neutral or"),
        ("QNLI.tsv", lambda text: text.replace("not_entailment", "NOT_ENTAILMENT"), "not_entailm"),
        ("STS-B.tsv", lambda text: text.replace("\n9\t", "\n9\t9", 1), "line 11: .*<TAB>0 to 5"),
        ("STS-B.tsv", lambda text: text.replace("\n3\t", "\n3\t-1", 1), "line 5: .*<TAB>0 to 5"),
        (
            "STS-B.tsv",
            lambda text: "index\tprediction\n" + "".join(f"{i}\tnan\n" for i in range(1379)),
            "0.tnan",
        ),
        ("RTE.tsv", lambda text: text.replace("\n7\t", "\n8\t", 1), "line 9: .*expected 7<TAB>"),
        ("SST-2.tsv", lambda text: text.replace("index", "id", 1), "first line must be"),
        ("AX.tsv", lambda text: None, "lacks AX.tsv"),
        ("glue/AX.tsv", lambda text: "x", "'glue/AX.tsv'; expected CoLA.tsv"),
        ("../AX.tsv", lambda text: "x", "at the top level"),
    ],
)
def test_files_that_the_server_would_refuse_are_refused(name, change, message, tampered):
    path = tampered({name: change})
    with pytest.raises(DataError, match=message):
        check_submission(path)


def test_a_file_that_is_not_a_zip_of_texts_is_refused_with_one_sentence(made, tampered, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="not a readable zip"):
        check_submission(tmp_path / "a.zip")
    with pytest.raises(DataError, match="not a readable zip"):
        check_submission(tmp_path / "missing.zip")
    path = tampered({"CoLA.tsv": lambda text: b"\xff\xfe" + text.encode()})
    with pytest.raises(DataError, match="not a readable zip of text"):
        check_submission(path)
    content = bytearray(made[0].read_bytes())
    begin = 30 + len(next(iter(FILES)))  # after the first file's header
    content[begin : begin + 100] = b"\xff" * 100  # no deflate stream begins so
    (tmp_path / "corrupt.zip").write_bytes(content)
    with pytest.raises(DataError, match="not a readable zip"):
        check_submission(tmp_path / "corrupt.zip")
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in FILES:
            pack.writestr(name, bytes(2**27) if name == "CoLA.tsv" else "")
    with pytest.raises(DataError, match="over 67,108,864 bytes"):
        check_submission(bomb)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("cola", np.ones(1062, dtype=int), "1,062 predictions for CoLA.tsv, expected 1,063"),
        ("stsb", np.full(1379, np.nan), "'0\\\\tnan', expected 0<TAB>0 to 5"),
    ],
)
def test_nothing_is_written_of_unusable_predictions(task, values, message, tmp_path):
    run = run_of(task)
    write_run(run_directory(tmp_path / "glue", run.settings), run, {"test": values})
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path / "glue", tmp_path / "glue.zip", protocol="robust-v1")
    assert [path.name for path in tmp_path.iterdir()] == ["glue"]


def test_generated_samples_are_not_a_submission(glue, tmp_path):
    data = load_task(TASKS["rte"], glue)
    settings = settings_of("rte", is_sample=True)
    values = {name: np.zeros(100, dtype=int) for name in ("dev", "test")}
    result = score_run(settings, data, values)
    write_run(run_directory(tmp_path / "glue", settings), result, values)
    with pytest.raises(DataError, match="generated samples; run 'smallbench glue' with --glue=hub"):
        write_submission(tmp_path / "glue", tmp_path / "glue.zip", protocol="robust-v1")


def test_missing_tasks_are_said(tmp_path):
    write_runs(tmp_path / "glue", ["cola", "sst2"])
    mnli = run_of("mnli")  # from data without test files
    write_run(run_directory(tmp_path / "glue", mnli.settings), mnli, {})
    report = write_submission(tmp_path / "glue", tmp_path / "glue.zip", protocol="robust-v1")
    with zipfile.ZipFile(tmp_path / "glue.zip") as pack:
        assert pack.namelist() == ["CoLA.tsv", "SST-2.tsv", "WNLI.tsv"]
    missing = "MRPC.tsv, STS-B.tsv, QQP.tsv, MNLI-m.tsv, MNLI-mm.tsv, AX.tsv, QNLI.tsv, RTE.tsv"
    assert f"Missing: {missing}. The server accepts only all 11 files" in report
    with pytest.raises(DataError, match=r"lacks MRPC\.tsv"):
        check_submission(tmp_path / "glue.zip")


def test_a_file_is_checked_by_its_name():
    text = "index\tprediction\n" + "".join(f"{i}\t0\n" for i in range(146))
    check_submission_file("WNLI.tsv", text, where="here")
    with pytest.raises(DataError, match=r"here: 146 predictions for AX\.tsv"):
        check_submission_file("AX.tsv", text, where="here")
    assert set(FILES) == set(LAYOUT)
    assert {name: split.num_rows for name, (_, split) in FILES.items()} == {
        name: num_rows for name, (num_rows, _) in LAYOUT.items()
    }
