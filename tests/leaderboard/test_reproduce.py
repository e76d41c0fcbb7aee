"""An entry repeated for real: its own commands run again, and its results compared."""

import json
import shutil

import pytest

from smallbench.jobs.cli import main
from smallbench.leaderboard.folder import fingerprint, read_files, read_submission
from smallbench.leaderboard.reproduce import commands_of
from tests.jobs.test_enter import SMALL, write_few_samples
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made
from tests.leaderboard.tampered import edit


def test_every_value_of_the_configuration_is_a_flag():
    entry = synthetic_entry("one", synthetic_gold(scale=0.01), seed=0).entry
    pretrain, export, glue = commands_of(entry, run_dir="run", data="corpus", results="glue")
    assert pretrain[:4] == ["smallbench", "pretrain", "bert-small", "--data=corpus"]
    assert f"--train.max_steps={entry.pretrain.num_steps}" in pretrain
    assert export == ["smallbench", "export", "--run=run", "--out=run/export"]
    assert glue[-1] == "--protocol=robust-v1"


def test_the_commands_are_printed_without_running_them(tmp_path, capsys):
    folder = write_made(tmp_path, synthetic_entry("one", synthetic_gold(scale=0.01), seed=0))
    words = ["leaderboard", "reproduce", str(folder), "--glue=hub", "--print_commands"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("smallbench pretrain bert-small --data=OpenWebText")


@pytest.mark.slow
def test_a_repeated_entry_agrees_with_itself_and_a_changed_one_does_not(corpus, tmp_path, capfd):
    glue, made = tmp_path / "glue", tmp_path / "made"
    write_few_samples(glue)
    words = [f"--data={corpus}", f"--glue={glue}", f"--out={made}"]
    assert main(["enter", "tiny", "bert-tiny", *words, *SMALL]) == 0
    folder = made / "entry" / "bert-tiny-seed-1"
    again = [f"--glue={glue}", f"--data={corpus}", f"--out={tmp_path / 'again'}"]
    found = capfd.readouterr().out.splitlines()
    for check in ("choice", "track", "compute", "log", "rows"):  # of real runs, recomputed
        assert f"ok        {check}" in found
    assert main(["leaderboard", "reproduce", str(folder), *again]) == 0
    printed = capfd.readouterr().out
    for name in ("parameters", "last loss", "AVG"):
        assert f"ok       {name}: " in printed
    word = json.loads(printed.rpartition("verified.json: ")[2].splitlines()[0])
    assert word == {"bert-tiny-seed-1": fingerprint(read_files(folder))}
    repeated = tmp_path / "again" / "entry" / "bert-tiny-seed-1"
    one, other = read_submission(folder), read_submission(repeated)
    assert all((one.predictions[p] == other.predictions[p]).all() for p in one.predictions)

    changed = shutil.copytree(folder, tmp_path / "changed" / "bert-tiny-seed-1")
    edit(changed, "model", "num_parameters", to=lambda num: num + 1)
    # The commands find their work done, and only the comparison is new.
    assert main(["leaderboard", "reproduce", str(changed), *again]) == 65
    printed = capfd.readouterr()
    assert "DIFFERS  parameters: " in printed.out
    assert "was not reproduced within the tolerances" in printed.err
