"""Ideas outside the package: each trains, resumes, exports and is scored like ours.

The files beside this one are the ideas; `docs/extending.md` shows the same text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from smallbench import plugins
from smallbench.config import from_dict, override_all, to_dict
from smallbench.errors import ConfigError
from smallbench.files import write_text
from smallbench.leaderboard.folder import read_submission
from smallbench.models import ARCHITECTURES
from smallbench.recipes import recipe_config
from smallbench.registry import Registry
from smallbench.train.config import PretrainConfig, plugins_of
from tests.command import command

pytestmark = pytest.mark.usefixtures("quick_runs")

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
IDEAS = ("gated_bert", "span_masking", "lion", "char_words", "word_order")
MAX_LINES = 60
SMALL = [
    "--sequence_length=32",
    "--train.max_steps=8",
    "--train.save_every_steps=2",
    "--train.log_every_steps=1",
    "--train.eval_every_steps=8",
    "--train.num_eval_rows=8",
    "--train.global_batch_size=8",
    "--model.num_hidden_layers=2",
    "--energy=none",
]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of files that a test gives are not those of the next one."""
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.setattr(plugins, "_GIVEN", set())


def process(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """The console script in a process of its own, to be killed or to know nothing of a plug-in."""
    line = [sys.executable, "-m", "smallbench.jobs.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, **options)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", IDEAS)
def test_an_idea_is_small_and_stands_on_the_page_as_it_is_tested(name: str) -> None:
    text = (HERE / f"{name}.py").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert text in blocks, f"docs/extending.md shows another {name}.py"


def test_a_plugin_brings_its_keys(tmp_path: Path) -> None:
    config = recipe_config(f"{HERE}/gated_bert.py:gated_bert_tiny")
    assert config.recipe == "gated_bert.py:gated_bert_tiny"
    assert config.model.architecture == "gated_bert.py:GatedBert"
    changed = override_all(config, {"model.gate": "0.25", "model.vocab_size": 99})
    assert changed.model.gate == 0.25  # type: ignore[attr-defined]
    assert from_dict(PretrainConfig, to_dict(changed)) == changed
    with pytest.raises(ConfigError, match=r"unknown key 'model\.gat'; did you mean 'model\.gate'"):
        override_all(config, {"model.gat": "0.25"})
    with pytest.raises(ConfigError, match=r"model\.gate=2\.0 is out of range"):
        override_all(config, {"model.gate": "2"})


@pytest.mark.parametrize(
    ("key", "name", "own"),
    [
        ("model.architecture", "gated_bert.py:GatedBert", "model.gate"),
        ("objective.objective", "span_masking.py:SpanMasking", "objective.mean_span"),
        ("optim.optimizer", "lion.py:lion", "optim.beta1"),
    ],
)
def test_any_recipe_takes_a_plugin(key: str, name: str, own: str) -> None:
    config = override_all(recipe_config("bert-tiny"), {key: f"{HERE}/{name}"})
    assert [f"{p.name}" for p in plugins_of(config)] == [name.partition(":")[0]]
    assert override_all(config, {own: "0.5" if own != "objective.mean_span" else "2"}) != config


def test_a_class_that_extends_another_configuration_is_not_built_as_the_other() -> None:
    config = recipe_config(f"{HERE}/gated_bert.py:gated_bert_tiny")
    built = ARCHITECTURES[config.model.architecture]
    assert built.__name__ == "GatedBert"


def test_where_a_file_lies_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "my idéas"
    folder.mkdir()
    text = (HERE / "gated_bert.py").read_text()
    write(folder, "gated_bert.py", text)
    elsewhere = recipe_config(f"{folder}/gated_bert.py:gated_bert_tiny")
    assert elsewhere == recipe_config(f"{HERE}/gated_bert.py:gated_bert_tiny")


def test_two_files_of_one_name_and_another_text_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "gated_bert.py", "x = 1\n")
    plugins.register(tmp_path / "gated_bert.py")
    with pytest.raises(ConfigError, match=r"Two different plug-ins are called gated_bert\.py"):
        plugins.register(HERE / "gated_bert.py")


def test_a_runs_copy_is_used_instead_of_the_file(tmp_path: Path) -> None:
    plugins.register(HERE / "gated_bert.py")
    config = recipe_config("gated_bert.py:gated_bert_tiny")
    kept = [plugin.to_dict() for plugin in plugins_of(config)]
    plugins.write_copies(kept, tmp_path, write_text)
    (copy,) = tmp_path.glob("*/gated_bert.py")
    assert copy.read_bytes() == (HERE / "gated_bert.py").read_bytes()
    plugins._FILES.clear()
    plugins.use_copies(kept, tmp_path)
    assert from_dict(PretrainConfig, to_dict(config)) == config
    kept[0]["files"] = {"gated_bert.py": "print('changed')"}
    with pytest.raises(ConfigError, match="does not match its SHA-256"):
        plugins.use_copies(kept, tmp_path)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("none.py:X", r"none\.py does not exist"),
        ("no_such_package_x:X", "There is no Python module 'no_such_package_x'"),
        ("{gated}:GatedBrt", "has no 'GatedBrt'; did you mean 'GatedBert'"),
        ("{gated}:GatedAttention", "is not an architecture: expected a smallbench.models.encoder"),
        ("gated-bert", r"unknown architecture 'gated-bert'.*\(or FILE\.py:NAME"),
    ],
)
def test_an_invalid_plugin_is_refused_with_one_sentence(reference: str, message: str) -> None:
    name = reference.format(gated=HERE / "gated_bert.py")
    with pytest.raises(ConfigError, match=message):
        override_all(recipe_config("bert-tiny"), {"model.architecture": name})


def test_an_entry_point_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (HERE / "gated_bert.py").read_text()
    (tmp_path / "lab_gates").mkdir()
    write(tmp_path / "lab_gates", "__init__.py", text)
    (tmp_path / "lab_gates-1.dist-info").mkdir()
    write(tmp_path / "lab_gates-1.dist-info", "METADATA", "Name: lab-gates\nVersion: 1\n")
    points = "[smallbench.architectures]\ngated = lab_gates:GatedBert\n"
    write(tmp_path / "lab_gates-1.dist-info", "entry_points.txt", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "gated" in ARCHITECTURES.installed()
    assert "lab_gates" not in sys.modules  # listing executes nothing
    config = override_all(recipe_config("bert-tiny"), {"model.architecture": "gated"})
    assert config.model.architecture == "lab_gates:GatedBert"
    (plugin,) = plugins_of(config)
    assert plugin.name == "lab_gates"
    assert list(plugin.files) == ["lab_gates/__init__.py"]
    with pytest.raises(ConfigError, match="did you mean 'gated'"):
        ARCHITECTURES["gaated"]


def test_a_table_without_a_group_takes_no_reference() -> None:
    with pytest.raises(ConfigError, match="unknown shape"):
        Registry("shape", {})[f"{HERE}/gated_bert.py:GatedBert"]


FAULTS = {
    "import": "import no_such_module_of_theirs\n",
    "syntax": "def f(:\n",
    "recipe": "def recipe():\n    raise RuntimeError('at\\nthe recipe')\n",
    "build": (
        "from smallbench.models.bert import Bert\n\nclass Model(Bert):\n"
        "    def __init__(self, config, *, head='tokens'):\n        raise RuntimeError('built')\n"
    ),
    "forward": (
        "from smallbench.models.bert import Bert\n\nclass Model(Bert):\n"
        "    def forward(self, batch):\n        return 1 / 0\n"
    ),
    "shape": (
        "from smallbench.models.bert import Bert\n\nclass Model(Bert):\n"
        "    def forward(self, batch):\n        return super().forward(batch)[0]\n"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_that_raises_ends_in_one_sentence_and_leaves_nothing(
    fault: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallbench.jobs.cli import main

    path = write(tmp_path, f"bad_{fault}.py", FAULTS[fault])
    recipe = f"{path}:recipe" if fault in {"import", "syntax", "recipe"} else "bert-tiny"
    model = [] if recipe != "bert-tiny" else [f"--model.architecture={path}:Model"]
    run_dir = tmp_path / "runs" / "a"
    code = main(["pretrain", recipe, *model, f"--data={corpus}", f"--run_dir={run_dir}", *SMALL])
    said = capsys.readouterr().err
    assert code == 78
    assert said.count("\n") == 1
    assert (f"{path}:" in said) == (fault != "shape")
    assert [p.name for p in tmp_path.iterdir()] == [f"bad_{fault}.py"]


def test_a_forward_pass_that_depends_on_its_data_trains_without_a_plan(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallbench.jobs.cli import main

    text = (
        "from smallbench.models.bert import Bert\n\nclass Model(Bert):\n"
        "    def forward(self, batch):\n        hidden = super().forward(batch)\n"
        "        return hidden if hidden.abs().max() < 1e9 else -hidden\n"
    )
    model = f"--model.architecture={write(tmp_path, 'looks.py', text)}:Model"
    places = [f"--data={corpus}", f"--run_dir={tmp_path}/run"]
    code = main(["pretrain", "bert-tiny", model, *places, *SMALL])
    said = capsys.readouterr().err
    assert code == 0, said
    assert "no plan: the memory of looks.py:Model cannot be planned" in said


def test_reading_and_showing_never_executes_a_plugin(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = write(tmp_path, "trap.py", f"open({str(mark)!r}, 'w')\n")
    plugin = plugins.register(Path(path))
    assert plugins.plugin_of("trap.py:X") == plugin
    plugins.use_copies([plugin.to_dict()], tmp_path)
    plugins.write_copies([plugin.to_dict()], tmp_path / "copies", write_text)
    assert plugins.sha256_of("trap.py", {"trap.py": Path(path).read_bytes()}) == plugin.sha256
    assert not mark.exists()
    with pytest.raises(ConfigError, match="has no 'X'"):
        plugins.resolve("trap.py:X")
    assert mark.exists()


RUNS = {
    "gated_bert": [f"{HERE}/gated_bert.py:gated_bert_tiny", "--model.gate=0.3"],
    "span_masking": [
        "bert-tiny",
        f"--objective.objective={HERE}/span_masking.py:SpanMasking",
        "--objective.mean_span=2",
    ],
    "lion": ["bert-tiny", f"--optim.optimizer={HERE}/lion.py:lion", "--optim.beta2=0.98"],
    "char_words": ["bert-tiny"],
    "word_order": ["bert-tiny"],
}
WITH_CODE = ("gated_bert", "span_masking", "lion")
"""Ideas that training needs; a tokenizer's file and a task's row are enough later."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_idea_trains_resumes_exactly_exports_and_makes_an_entry(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(corpus)
    if name == "char_words":
        words = f"--corpus=text.txt --out=corpus --tokenizer={HERE}/char_words.py:char_words"
        sizes = ["--vocab_size=60", "--sequence_length=32", "--eval_fraction=0.2"]
        text = "\n\n".join(f"document {n} " + f"tells of {n * n} words. " * 20 for n in range(80))
        (tmp_path / "text.txt").write_text(text)
        command("prepare", *words.split(), *sizes)
        data = "corpus"
    line = ["pretrain", *RUNS[name], f"--data={data}", *SMALL]
    command(*line, "--run_dir=whole")
    killed = process(*line, "--run_dir=killed")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed" / "commits").glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    command(*line, "--run_dir=killed")
    (first,) = (tmp_path / "whole" / "checkpoints").glob("*8/*/module.safetensors")
    (second,) = (tmp_path / "killed" / "checkpoints").glob("*8/*/module.safetensors")
    assert first.read_bytes() == second.read_bytes()
    command("export", "--run=killed", "--out=export")
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert [kept["name"] for kept in record["plugins"]] == [f"{name}.py"] * (name in WITH_CODE)
    score(name, tmp_path)
    entry = tmp_path / "an-idea"
    command(
        *["leaderboard", "new", "--run=killed", "--glue=glue", "--out=an-idea", "--authors=Ada"],
        *["--license=MIT", "--contains_glue=false"],
    )
    plugins_of_entry = read_submission(entry).entry.measured.provenance.plugins
    assert [p["sha256"] for p in plugins_of_entry] == [p["sha256"] for p in record["plugins"]]
    for plugin in plugins_of_entry:
        assert (entry / plugin["files"][f"{name}.py"]).read_bytes() == (
            HERE / f"{name}.py"
        ).read_bytes()
    if name in WITH_CODE:
        refuses_changed_code(name, line, tmp_path)


def score(name: str, folder: Path) -> None:
    """Fine-tune the run on samples of the eight tasks, and on its own task if it is one."""
    quick = ["--learning_rate=1e-3", "--seeds=1", "--epochs=1", "--max_length=32"]
    command("glue", "--model=killed", "--glue=samples", "--out=glue", *quick)
    if name != "word_order":
        return
    (folder / "data" / "WordOrder").mkdir(parents=True)
    for split, count in (("train", 40), ("dev", 20)):
        rows = [f"the word {n} is here\t{n % 2}" for n in range(count)]
        text = "\n".join(["sentence\tlabel", *rows, ""])
        (folder / "data" / "WordOrder" / f"{split}.tsv").write_text(text)
    own = f"--tasks={HERE}/word_order.py:WORD_ORDER"
    command("glue", "--model=killed", "--glue=data", "--out=own", own, *quick)
    shown = process("glue", "show", "own", stdout=subprocess.PIPE)
    assert b"| WordOrder | accuracy |" in shown.communicate()[0]


def refuses_changed_code(name: str, line: list[str], folder: Path) -> None:
    changed = (HERE / f"{name}.py").read_text() + "\n# changed\n"
    other = write(folder, f"{name}.py", changed)
    again = [word.replace(f"{HERE}/{name}.py", other) for word in line]
    refused = command(*again, "--run_dir=killed", code=78)
    assert f"{name}.py has changed since killed began" in refused.stderr
    command(*again, "--run_dir=killed", "--allow_changed_code")
