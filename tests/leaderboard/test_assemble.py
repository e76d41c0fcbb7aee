"""An entry from real runs: it needs no typed values that the runs have, and misfits are refused."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smallbench.config import from_dict, override_all
from smallbench.errors import DataError
from smallbench.glue.protocols import CHOICE_SEED, PROTOCOLS
from smallbench.glue.results import RunResult, RunSettings, SplitResult, run_directory, write_run
from smallbench.glue.tasks import TASKS
from smallbench.jobs import enter
from smallbench.jobs.base import require_accepted
from smallbench.leaderboard.assemble import (
    Author,
    _require_official_rows,
    write_new_entry,
)
from smallbench.leaderboard.compute import count_parameters
from smallbench.leaderboard.entry import Stage
from smallbench.leaderboard.evaluation import evaluate
from smallbench.leaderboard.folder import FOLDERS
from smallbench.leaderboard.run_sections import (
    batch_stages_of,
    hardware_of,
    plugin_path,
    provenance_of,
    stages_of,
    thin_records,
)
from smallbench.models.config import ElectraConfig
from smallbench.pretraining.pretrain import pretrain
from smallbench.recipes import RECIPES
from smallbench.tracking.jsonl import read_metrics
from tests.command import command as smallbench
from tests.glue.runs import run_of
from tests.leaderboard.synthetic import synthetic_gold

pytestmark = pytest.mark.usefixtures("quick_runs")

STEPS = 220
ROBUST = PROTOCOLS["robust-v1"]
GOLD = synthetic_gold(scale=0.01)
AUTHOR = Author(
    name=None, authors=("Ada",), license="Apache-2.0", date="2026-11-25", contains_glue=False
)


@pytest.fixture(scope="module")
def run_dir(corpus, tmp_path_factory):
    """A real pretraining of a tiny ELECTRA."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    values = {
        "sequence_length": 32, "model.hidden_size": 32, "model.intermediate_size": 64,
        "model.embedding_size": 16, "model.num_hidden_layers": 1, "train.global_batch_size": 4,
        "train.max_steps": STEPS, "train.log_every_steps": 1, "train.num_eval_rows": 8,
        "train.eval_every_steps": 100, "train.save_every_steps": 100, "train.precision": "fp32",
    }  # fmt: skip
    config = override_all(RECIPES["electra-tiny"](), values)
    pretrain(config, data=corpus, run_dir=folder)
    return folder


def num_parameters(model):
    return count_parameters(from_dict(ElectraConfig, model)).total


def settings_of(run_dir, task, **changes):
    record = json.loads((run_dir / "run.json").read_text())
    return replace(
        RunSettings(
            task=task,
            model=f"electra-tiny (run {record['run_id']}, step {STEPS})",
            model_sha256=hashlib.sha256(b"weights").hexdigest(),
            files_sha256=hashlib.sha256(b"files").hexdigest(),
            num_parameters=num_parameters(record["config"]["model"]),
            learning_rate=1e-4,
            seed=1,
            epochs=TASKS[task].default_epochs,
            batch_size=32,
            max_length=128,
            weight_decay=0.01,
            warmup_fraction=0.1,
            clip_norm=1.0,
            precision="fp32",
            is_sample=True,
        ),
        **changes,
    )


def mostly_right(task, labels, seed):
    """Answers of which every tenth is wrong, other ones for another seed.

    Drawn ones would be flagged by chance: two dev splits of a hundred rows often differ by more
    than the ten points that the check allows.
    """
    wrong = (np.arange(len(labels)) + seed) % 10 == 0
    other = 5 - labels if task.is_regression else (labels + 1) % task.num_labels
    return np.where(wrong, other, labels)


def write(out, settings, score=0.5):
    """A stored fine-tuning with made-up answers."""
    task = TASKS[settings.task]
    splits = settings.scored_splits
    metrics = SplitResult(dict.fromkeys(task.metrics, score), 10, failed=False)
    choice = GOLD.choices[task.name]
    hashes = {"dev": "cd" * 32, "choice": choice.sha256}
    result = RunResult(settings, dict.fromkeys(splits, metrics), hashes, ())
    values = {s: mostly_right(task, GOLD.labels[task.name][s], settings.seed)
              for s in splits if s != "choice"}  # fmt: skip
    if settings.split == "choice":
        number, is_best = ROBUST.learning_rates.index(settings.learning_rate), score > 0.5
        answers = mostly_right(task, choice.labels, number)
        values["choice"] = choice.labels if is_best else answers
    write_run(run_directory(out, settings), result, values)


@pytest.fixture(scope="module")
def stored(run_dir, tmp_path_factory):
    """robust-v1's runs of all tasks: 2e-4 is chosen everywhere."""
    out = tmp_path_factory.mktemp("stored")
    for name, task in TASKS.items():
        for rate in ROBUST.learning_rates:
            settings = settings_of(
                run_dir, name, learning_rate=rate, seed=CHOICE_SEED, split="choice"
            )
            write(out, settings, score=0.6 if rate == 2e-4 else 0.5)
        for seed in ROBUST.seeds(task):
            write(out, settings_of(run_dir, name, learning_rate=2e-4, seed=seed))
    return out


@pytest.fixture
def glue(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "results")


def test_an_entry_has_the_values_of_its_runs_and_passes(run_dir, glue, tmp_path):
    out = tmp_path / "submissions" / "tiny"
    entry = write_new_entry(out, run_dir=run_dir, glue=glue, author=AUTHOR)
    record = json.loads((run_dir / "run.json").read_text())
    last = read_metrics(run_dir / "metrics.jsonl")[-2]
    assert (entry.slug, entry.name, entry.tier) == ("tiny", "electra-tiny", "logged")
    assert entry.model.objective == "replaced_token"
    assert entry.model.num_hidden_layers == 1
    assert entry.pretrain.num_tokens == last["tokens"]
    assert entry.pretrain.num_steps == STEPS
    assert entry.pretrain.gpu_active_seconds == last["train_seconds"]
    assert entry.data.sha256 == record["corpus"]["shards"]
    assert "/" not in entry.data.name
    assert entry.provenance.config == record["config"]
    assert entry.provenance.command[0] == "smallbench"
    assert not any(word.startswith(("/", "--data=/")) for word in entry.provenance.command)
    assert entry.energy.kwh is None
    assert entry.finetune.protocol == "robust-v1"
    assert set(entry.finetune.chosen.values()) == {2e-4}
    assert entry.finetune.num_trials == 5

    evaluation = evaluate(out, GOLD)
    assert not evaluation.rejected, evaluation.findings
    wrong = {(f.check, f.verdict, f.reason) for f in evaluation.findings if f.verdict != "passed"}
    committed = {one for one in wrong if one[0] != "provenance"}  # the code here may have changes
    assert committed == {
        ("track", "flagged", f"not in track 'small', but in 'any': the memory of card "
         f"{entry.hardware.gpu!r} is not known"),
    }  # fmt: skip
    assert evaluation.tier == ("logged" if wrong == committed else "claimed")
    assert evaluation.tracks == ("any",)
    assert evaluation.views["robust"].average is not None


def test_an_entry_is_never_overwritten(run_dir, glue, tmp_path):
    with pytest.raises(DataError, match="exists already; delete it"):
        write_new_entry(tmp_path, run_dir=run_dir, glue=glue, author=AUTHOR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "electra-tiny (run 00000000, step 220)", "model_sha256": "cd" * 32},
            "of several models|not the last step",
        ),
        ({"max_train_examples": 50}, "of several models|on a part of train"),
        ({"batch_size": 16}, "mix batch_size"),
        ({"precision": "bf16"}, "mix precision"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(changes, message, run_dir, glue, tmp_path):
    write(glue, settings_of(run_dir, "rte", seed=9, **changes))
    with pytest.raises(DataError, match=message):
        write_new_entry(tmp_path / "x", run_dir=run_dir, glue=glue, author=AUTHOR)
    assert not (tmp_path / "x").exists()


def test_runs_without_a_choice_are_the_papers(run_dir, tmp_path):
    for rate in (1e-4, 3e-4):
        write(tmp_path / "results", settings_of(run_dir, "rte", learning_rate=rate))
    entry = write_new_entry(
        tmp_path / "x", run_dir=run_dir, glue=tmp_path / "results", author=AUTHOR
    )
    assert (entry.finetune.protocol, entry.finetune.chosen) == ("paper", {})
    assert set(evaluate(tmp_path / "x", GOLD).views) == {"paper"}


def test_an_unusable_author_is_said_at_once(run_dir, glue, tmp_path):
    author = replace(AUTHOR, license="do what you want")
    with pytest.raises(DataError, match="would be rejected: license"):
        write_new_entry(tmp_path / "x", run_dir=run_dir, glue=glue, author=author)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x", "--license: 'a b' (expected an SPDX identifier"),
        ("My_Model", "My_Model: invalid slug 'My_Model'; expected lower-case letters"),
    ],
)
def test_new_names_the_flag_of_an_unusable_value_before_it_reads_a_run(tmp_path, name, said):
    flags = ("--run=none", "--glue=none", "--authors=Ada", "--contains_glue=false", "--license=a b")
    found = smallbench("leaderboard", "new", f"--out={tmp_path / name}", *flags, code=78)
    assert said in found.stderr


def test_enter_makes_an_entry_whole_that_a_kill_left_in_part(
    run_dir, glue, tmp_path, monkeypatch, capsys
):
    """Whichever file was the last one; a whole entry gets the same bytes again."""
    (tmp_path / "run").symlink_to(run_dir)
    glue.rename(tmp_path / "glue")
    options = enter.Options(
        track="small", recipe="electra-tiny", data="none", glue="none", out=tmp_path
    )
    config = RECIPES["electra-tiny"]()

    def contents():
        found = (tmp_path / "entry").rglob("*")
        return {str(path.relative_to(tmp_path)): path.read_bytes()
                for path in found if path.is_file()}  # fmt: skip

    folder = enter.write_entry(options, config)
    whole = contents()
    for last in ("write_bytes", "write_text", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(f"smallbench.leaderboard.entry.files.{last}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                enter.write_entry(options, config)
        assert "entry/electra-tiny-seed-1/entry.json" not in contents()
        enter.write_entry(options, config)
        assert contents() == whole
    require_accepted(folder, GOLD)
    assert "electra-tiny-seed-1: accepted as" in capsys.readouterr().out
    monkeypatch.setattr("smallbench.leaderboard.site.build.downloads_of", interrupt_page)
    with pytest.raises(DataError, match="electra-tiny-seed-1 is rejected: page"):
        require_accepted(folder, GOLD)


def interrupt(*args, **options):
    raise KeyboardInterrupt


def interrupt_page(evaluation):
    raise ValueError("no page")


def test_a_thinned_log_says_the_same_throughput():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.5, 1.5, 1001))
    records = [
        {"step": n, "tokens": 100 * n, "train_seconds": float(t), "tokens_per_second":
         100 / (t - times[n - 1]) if n else None}
        for n, t in enumerate(times)
    ]  # fmt: skip
    kept = thin_records(records, 50)
    assert len(kept) <= 52
    assert (kept[0], kept[-1]["step"]) == (records[0], 1000)
    spans = np.diff([record["train_seconds"] for record in kept])
    rates = np.array([record["tokens_per_second"] for record in kept[1:]])
    assert rates @ spans == pytest.approx(100_000)
    assert thin_records(records, 5000) == records


def test_the_stages_of_a_batch_ramp_add_up():
    records, tokens = [], 0
    for step in range(10, 1001, 10):
        tokens += 10 * 32 * (64 if step <= 300 else 128)
        records.append({"step": step, "tokens": tokens, "train_seconds": float(step)})
    assert batch_stages_of(records, length=32) == (Stage(300, 64, 32), Stage(700, 128, 32))


@pytest.mark.parametrize(("along", "first"), [("steps", 900), ("flops", 830)])
def test_a_second_phase_is_a_stage_of_longer_rows(along, first):
    """By FLOPs it begins earlier, since its steps cost more."""
    settings = {
        "sequence_length": 32, "train": {"global_batch_size": 64}, "schedule": {"along": along},
        "then": {"sequence_length": 128, "begin_fraction": 0.9 if along == "steps" else 0.7},
    }  # fmt: skip
    records = [
        {"step": step, "tokens": step * 2048, "train_seconds": float(step),
         "train_flops": step if step <= 820 else 820 + 2 * (step - 820)}
        for step in range(10, 1001, 10)
    ]  # fmt: skip
    expected = (Stage(first, 64, 32), Stage(1000 - first, 16, 128))
    assert stages_of(settings, records) == expected


def test_a_run_on_two_machines_is_one_of_the_larger_card_and_of_no_commit():
    attempts = [
        {"device": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30, "precision": "bf16",
         "torch": "2.13.0", "git_commit": "a1" * 20, "command": ["smallbench"],
         "smallbench": "0.2.0"},
        {"device": "Tesla T4", "memory_bytes": 15 << 30, "precision": "fp16",
         "torch": "2.13.0", "git_commit": "b2" * 20, "command": ["smallbench"],
         "smallbench": "0.2.0"},
    ]  # fmt: skip
    record = {"attempts": attempts, "plugins": [], "config": {}, "config_digest": "c3" * 32}
    assert hardware_of(record, usd_per_hour=None).gpu == "NVIDIA H100 80GB HBM3"
    assert provenance_of(record, log_sha256="d4" * 32, image_digest=None).git_commit is None


def test_the_files_of_plugins_have_names_of_their_own():
    names = ("lab/gate.py", "lab/модель.py", "lab/оптика.py", "模型.py", "优化.py", "test_gate.py")
    paths = [plugin_path(name) for name in names]
    assert len({*paths}) == len(names)
    pattern, _ = FOLDERS["plugins"]
    assert all(pattern.fullmatch(path.removeprefix("plugins/")) for path in paths)


@pytest.mark.parametrize(
    ("unofficial", "message"),
    [
        (("RTE train has 88 rows",), "not have the official rows: RTE train has 88 rows"),
        ((), "RTE dev does not have the official rows in the official order"),
    ],
)
def test_an_entry_is_of_the_official_rows_in_their_order(unofficial, message):
    run = replace(run_of("rte"), unofficial=unofficial)
    with pytest.raises(DataError, match=message):
        _require_official_rows([run], Path("glue"))
