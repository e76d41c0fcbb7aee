"""The table: exact text, its order, and samples separate from real rows."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import smallbench.leaderboard
from smallbench.errors import DataError
from smallbench.glue.results import (
    RunResult,
    SplitResult,
    run_directory,
    write_run,
)
from smallbench.glue.tasks import TASKS
from smallbench.jobs.leaderboard import TableOptions, table
from smallbench.leaderboard.markdown_table import (
    TableCell,
    TableRow,
    leaderboard_rows,
    local_rows,
    ordered,
    render_markdown,
)
from tests.glue.runs import settings_of


def runs_of(model="org/mine", tasks=tuple(TASKS), scores=(0.80, 0.82), **changes):
    found = []
    for task in tasks:
        for seed, score in enumerate(scores, start=1):
            settings = settings_of(
                task, model=model, num_parameters=13_549_312, seed=seed, **changes
            )
            split = SplitResult(dict.fromkeys(TASKS[task].metrics, score), 100, failed=False)
            found.append(
                RunResult(
                    settings=settings,
                    splits=dict.fromkeys(TASKS[task].dev_splits, split),
                    data_sha256={"dev": "cd" * 32},
                    unofficial=(),
                    seconds=1.0,
                    examples_per_second=1.0,
                )
            )
    return found


def test_the_papers_table_is_as_printed():
    lines = render_markdown(leaderboard_rows()).split("\n")
    assert lines[:8] == [
        "| Model | Kind | Params | CoLA | SST | MRPC | STS | QQP | MNLI | QNLI | RTE | AVG "
        "| Seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| BERT-Base <sup>1</sup> | *reported* | 110.0M | – | – | – | – | – | – | – | – | 82.20 "
        "| – |",
        "| ELECTRA-DeBERTa <sup>2,3</sup> | *reported* | 15.1M | 57.50 | 90.40 | 88.22 | 86.74 "
        "| 90.44 | 81.78 | 88.10 | 69.09 | 81.53 | – |",
        "| ELECTRA <sup>4</sup> | *reported* | 13.5M | 56.80 | 88.30 | 87.40 | 86.80 | 88.30 "
        "| 78.90 | 87.90 | 68.50 | 80.36 | – |",
        "| DeBERTa <sup>2,5</sup> | *reported* | 15.0M | 47.82 | 90.36 | 88.49 | 84.62 | 88.31 "
        "| 78.11 | 86.67 | 67.87 | 79.03 | – |",
        "| BERT <sup>2,6</sup> | *reported* | 13.5M | 45.00 | 90.14 | 86.27 | 84.46 | 88.59 "
        "| 79.58 | 87.22 | 65.70 | 78.37 | – |",
        "| RoBERTa <sup>2,6</sup> | *reported* | 22.4M | 44.72 | 89.45 | 85.30 | 84.02 | 89.84 "
        "| 79.51 | 87.39 | 66.42 | 78.33 | – |",
    ]
    assert "1. Reference from outside the budget; only its AVG is given." in lines
    assert not any("local" in line or "sample" in line for line in lines)


def test_a_local_row_shows_mean_spread_and_seeds_in_its_place_by_avg():
    lines = render_markdown(leaderboard_rows(runs_of())).split("\n")
    cells = " | ".join(["81.00 ± 1.41"] * 8)
    expected = f"| org/mine <sup>4</sup> | *local* | 13.5M | {cells} | 81.00 | 2 |"
    assert lines[4] == expected
    assert "ELECTRA-DeBERTa" in lines[3]
    assert "| ELECTRA <sup>" in lines[5]
    assert any("mean over seeds ± standard deviation" in line for line in lines)
    assert any("are not ranked together" in line for line in lines)


def test_incomplete_rows_have_no_avg_and_follow_the_complete_ones():
    (row,) = local_rows(runs_of(tasks=("sst2", "mrpc"), scores=(0.999,)))
    assert row.average is None
    assert ordered([*leaderboard_rows(), row])[-1] == row
    table = render_markdown([row])
    assert "| – | 99.90 | 99.90 | – | – | – | – | – | – | 1 |" in table
    assert "2 of 8 tasks; their mean is 99.90, which is not an AVG." in table


def test_sample_rows_stand_below_every_real_row_and_say_so():
    perfect = runs_of("org/toy", scores=(1.0,), is_sample=True)
    poor = runs_of("org/poor", tasks=("cola",), scores=(0.0,))
    rows = leaderboard_rows([*perfect, *poor])
    assert [row.name for row in rows[-2:]] == ["org/poor", "org/toy"]
    table = render_markdown(rows)
    assert "| *sample* |" in table
    assert "- *sample*: scored on generated samples, not on GLUE. Never comparable" in table


def test_the_same_model_on_samples_and_on_glue_is_two_rows():
    rows = local_rows([*runs_of(), *runs_of(is_sample=True), *runs_of(random_init=True)])
    assert [(row.name, row.kind) for row in rows] == [
        ("org/mine", "local"),
        ("org/mine", "sample"),
        ("org/mine (random initialisation)", "local"),
    ]


def test_names_stay_in_their_cells_and_are_not_markup():
    rows = [
        TableRow("a|b\n<i>*c*_d", "local", None, {"cola": TableCell(1.0)}, None, notes=("x | y",))
    ]
    line = render_markdown(rows).split("\n")[2]
    assert line.startswith(r"| a\|b &lt;i>\*c\*\_d <sup>1</sup> | *local* | – | 1.00 | – ")
    assert r"1. x \| y" in render_markdown(rows)


def test_a_directory_is_named_by_its_last_part():
    runs = runs_of("/somewhere/else/bert-small")
    assert local_rows(runs)[0].name == "bert-small"


def test_failed_and_shortened_runs_are_reported():
    runs = runs_of(max_train_examples=50)
    bad = replace(runs[0].splits["dev"], failed=True)
    runs[0] = replace(runs[0], splits={"dev": bad})
    notes = " ".join(local_rows(runs)[0].notes)
    assert "1 of 16 runs were no better than the majority class" in notes
    assert "max_train_examples 50, not none" in notes


def test_the_job_prints_what_it_writes(tmp_path, capsys):
    for result in runs_of(tasks=("cola", "rte")):
        directory = run_directory(tmp_path / "a", result.settings)
        write_run(directory, result, {"dev": np.zeros(100, dtype=int)})
    out = tmp_path / "table.md"
    table(TableOptions(results=(tmp_path / "a",), out=out))
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    assert "org/mine" in printed
    with pytest.raises(DataError, match="has no finished runs"):
        table(TableOptions(results=(tmp_path / "b",)))


def test_the_leaderboard_imports_no_torch():
    folder = Path(smallbench.leaderboard.__file__).parent
    for path in [*folder.glob("*.py"), folder.parent / "glue/results.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names)
