"""An entry repeated for real: its own commands run again, and its results compared."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallbench import plugins
from smallbench.jobs.cli import main
from smallbench.leaderboard import reproduce
from smallbench.leaderboard.folder import fingerprint, read_files, read_submission
from smallbench.leaderboard.reproduce import commands_of
from tests.jobs.test_enter import ENOUGH, write_few_samples
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_gold, write_made
from tests.leaderboard.tampered.base import edit

GOLD = synthetic_gold(scale=0.01)
GATED = Path(__file__).parents[1] / "plugins" / "gated_bert.py"
CONFIG = ("provenance", "config")


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Files of plug-ins that a test names are not those of the next one."""
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.setattr(plugins, "_GIVEN", set())


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    write_gold(folder, GOLD)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_made(tmp_path_factory.mktemp("made"), synthetic_entry("one", GOLD, seed=0))


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "entries" / "one"))


@pytest.fixture
def started(monkeypatch):
    """The commands that a repetition starts, in a list instead of for real; each is interrupted."""
    commands = []

    def run(words, check):
        commands.append(words[3:])
        (flag,) = (word for word in words if word.startswith("--run_dir="))
        Path(flag.partition("=")[2]).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=75)

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    return commands


def add_plugin(folder, text, *, name="mine.py", file=None, recipe="mine.py:Small"):
    """A plug-in whose file has another name in the entry, as one that is called like a test has."""
    path, file = "plugins/_mine_.py", file or name
    (folder / path).parent.mkdir()
    (folder / path).write_text(text)
    sha256 = plugins.sha256_of(name, {file: text.encode()})
    plugin = {"name": name, "sha256": sha256, "files": {file: path}}
    edit(folder, "provenance", "plugins", to=[plugin])
    edit(folder, *CONFIG, "recipe", to=recipe)


def test_every_value_of_the_configuration_is_a_flag():
    entry = synthetic_entry("one", GOLD, seed=0).entry
    pretrain, export, glue = commands_of(entry, run_dir="run", data="corpus", results="glue")
    assert pretrain[:4] == ["smallbench", "pretrain", "bert-small", "--data=corpus"]
    assert f"--train.max_steps={entry.pretrain.num_steps}" in pretrain
    assert export == ["smallbench", "export", "--run=run", "--out=run/export"]
    assert glue[-1] == "--protocol=robust-v1"


def test_the_commands_are_printed_without_running_them(folder, capsys):
    words = ["leaderboard", "reproduce", str(folder), "--glue=hub", "--print_commands"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("smallbench pretrain bert-small --data=OpenWebText")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("storage",), "s3://attacker/x", "unknown key 'storage'"),
        (("plugin",), ["/tmp/evil.py"], "unknown key 'plugin'"),
        (("recipe",), "/some/where/evil.py:Small", "recipe '/some/where/evil.py:Small'"),
        (("recipe",), "--config=evil.yaml", "recipe '--config=evil.yaml'"),
        (("model", "architecture"), "../evil.py:Gated", "model.architecture '../evil.py:Gated'"),
        (("optim",), {"optimizer": ["/x.py:Evil"]}, "optim.optimizer '/x.py:Evil'"),
        (("recipe",), "mine.py:Small", "is not in the entry's plugins/"),
        (("recipe",), "os:system", "is not in the entry's plugins/"),
    ],
)
def test_a_configuration_says_nothing_but_what_is_computed(place, value, said, folder, capsys):
    edit(folder, *CONFIG, *place, to=value)
    words = ["leaderboard", "reproduce", str(folder), "--glue=hub", "--print_commands"]
    assert main(words) == 65
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_code_of_an_entry_runs_only_if_the_keeper_says_so(
    folder, labels, started, corpus, tmp_path, monkeypatch, capsys
):
    proof, out = tmp_path / "executed", tmp_path / "out"
    add_plugin(folder, f"from smallbench.recipes.bert import bert_tiny as Small\n"
                       f"open({str(proof)!r}, 'w').close()\n")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise ValueError('a file of the same name')")
    words = ["leaderboard", "reproduce", str(folder), f"--glue={labels}", f"--out={out}",
             f"--data={corpus}"]  # fmt: skip
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "executes the submitter's code in plugins/_mine_.py" in said
    assert "--run_plugins=true" in said
    assert main([*words, "--print_commands"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert not out.exists()
    assert not started

    assert main([*words, "--run_plugins=true"]) == 65
    assert [shlex.split(printed[0])[1:]] == started
    assert "--trust_remote_code=true" in printed[2]
    assert not proof.exists()
    (copy,) = (out / "plugins").rglob("*.py")
    assert copy.name == "mine.py"
    assert copy.read_bytes() == (folder / "plugins" / "_mine_.py").read_bytes()
    assert main([*started[0][:4], f"--plugin={copy}", "--dry_run"]) == 0
    assert f"--plugin={copy}" in started[0]
    assert proof.exists()


@pytest.mark.parametrize("name", ["../mine.py", "/tmp/mine.py", "a,b.py", "a/../../mine.py"])
def test_the_copy_of_a_plugin_stays_in_its_folder(name, folder, capsys):
    add_plugin(folder, "", name=name)
    words = ["leaderboard", "reproduce", str(folder), "--glue=hub", "--run_plugins"]
    assert main([*words, "--print_commands"]) == 65
    assert "has a file outside its folder, or of a strange name" in capsys.readouterr().err


def test_an_installed_package_must_be_the_one_of_the_entry(folder, labels, started, capsys):
    """`yaml` stands for a package of one's own."""
    add_plugin(folder, "", name="yaml", file="yaml/__init__.py", recipe="yaml.loader:Loader")
    words = ["leaderboard", "reproduce", str(folder), f"--glue={labels}", "--run_plugins"]
    assert main([*words, f"--out={folder.parent / 'out'}"]) == 78
    assert "The installed package yaml is not the one" in capsys.readouterr().err
    assert not started


def test_only_a_repetition_of_the_same_entry_is_continued(
    folder, labels, started, tmp_path, capsys
):
    def again(entry, out):
        words = ["leaderboard", "reproduce", str(entry), f"--glue={labels}"]
        return main([*words, f"--out={tmp_path / out}"])

    other = Path(shutil.copytree(folder, folder.with_name("other")))
    edit(other, "slug", to="other")
    assert again(folder, "out") == again(folder, "out") == 65
    assert "pretrain ended with exit code 75" in capsys.readouterr().err
    assert len(started) == 2
    (tmp_path / "foreign" / "run").mkdir(parents=True)
    assert again(other, "out") == again(folder, "foreign") == 65
    edit(folder, *CONFIG, "train", "seed", to=7)
    assert again(folder, "out") == 65
    assert capsys.readouterr().err.count("choose another --out") == 3
    assert len(started) == 2


def test_a_second_phase_needs_its_corpus(folder, capsys):
    words = ["leaderboard", "reproduce", str(folder), "--glue=hub", "--print_commands"]
    assert main([*words, "--then_data=long"]) == 2
    edit(folder, *CONFIG, "then", to={"sequence_length": 512})
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "has no second phase; leave --then_data out" in said
    assert "set --then_data to its corpus" in said
    assert main([*words, "--then_data=long"]) == 0
    assert "--then_data=long" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "slug", "flags"),
    [
        ("bert-tiny", "bert-tiny-seed-1", []),
        (f"{GATED}:gated_bert_tiny", "gated-bert-gated-bert-tiny-seed-1", ["--run_plugins"]),
    ],
    ids=["row", "plugin"],
)
def test_a_repeated_entry_agrees_with_itself_and_a_changed_one_does_not(
    recipe, slug, flags, corpus, tmp_path, capfd, monkeypatch
):
    glue, made = tmp_path / "glue", tmp_path / "made"
    write_few_samples(glue)
    words = [f"--data={corpus}", f"--glue={glue}", f"--out={made}"]
    assert main(["enter", "tiny", recipe, *words, *ENOUGH]) == 0
    folder = made / "entry" / slug
    again = [f"--glue={glue}", f"--data={corpus}", f"--out={tmp_path / 'again'}", *flags]
    found = capfd.readouterr().out.splitlines()
    # Of real runs, recomputed; only the log counts the operations of a plug-in.
    for check in ("choice", "track", "log", "rows", *(() if flags else ("compute",))):
        assert f"ok        {check}" in found
    assert main(["leaderboard", "reproduce", str(folder), *again]) == 0
    printed = capfd.readouterr().out
    for name in ("parameters", "last loss", "AVG"):
        assert f"ok       {name}: " in printed
    word = json.loads(printed.rpartition("verified.json: ")[2].splitlines()[0])
    assert word == {slug: fingerprint(read_files(folder))}
    repeated = tmp_path / "again" / "entry" / slug
    one, other = read_submission(folder), read_submission(repeated)
    assert all((one.predictions[p] == other.predictions[p]).all() for p in one.predictions)

    changed = shutil.copytree(folder, tmp_path / "changed" / slug)
    edit(changed, "model", "num_parameters", to=lambda num: num + 1)
    # The commands would find their work done; only the comparison is new.
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, check: done)
    assert main(["leaderboard", "reproduce", str(changed), *again]) == 65
    printed = capfd.readouterr()
    assert "DIFFERS  parameters: " in printed.out
    assert "was not reproduced within the tolerances" in printed.err
