"""Whole runs on a real prepared corpus: what is interrupted ends as if it had not been."""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from safetensors.torch import load_file

from smallbench.checkpoints.store import CheckpointStore, sealed
from smallbench.config import override_all
from smallbench.errors import ConfigError, ConflictError, DataError, InterruptedRunError
from smallbench.files import exclusive_lock
from smallbench.pretraining.pretrain import pretrain
from smallbench.recipes import RECIPES
from smallbench.stop import Stop
from smallbench.tracking.jsonl import read_metrics

VALUES = {
    "sequence_length": 32,
    "model.hidden_size": 32,
    "model.embedding_size": 16,
    "model.intermediate_size": 64,
    "model.num_hidden_layers": 2,
    "model.max_position_embeddings": 32,
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0.1,
    "train.max_steps": 24,
    "train.global_batch_size": 8,
    "train.log_every_steps": 5,
    "train.eval_every_steps": 6,
    "train.num_eval_rows": 16,
    "train.save_every_steps": 8,
}
TIMES = {
    "train_seconds",
    "tokens_per_second",
    "mfu",
    "eta_seconds",
    "eval_seconds",
    "sync_lag_steps",
    "wall_seconds",
    "gpu_active_seconds",
    "energy_kwh",
    "cost",
}


def tiny(**values):
    changed = {key.replace("__", "."): value for key, value in values.items()}
    return override_all(RECIPES["bert-tiny"](), {**VALUES, **changed})


def outcome(run_dir):
    """Final weights, optimizer and metrics without times."""
    checkpoint = CheckpointStore(run_dir).newest()
    records = [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_metrics(run_dir / "metrics.jsonl")
    ]
    weights = load_file(checkpoint.directory / "module.safetensors")
    engine = (checkpoint.directory / "engine.pt").read_bytes()
    return checkpoint.step, {k: v.tolist() for k, v in weights.items()}, engine, records


def test_a_run_leaves_what_it_promises(corpus, tmp_path, drawn):
    pretrain(tiny(), data=corpus, run_dir=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["config"]["model"]["vocab_size"] == 300, "filled in from the corpus"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    records = read_metrics(tmp_path / "metrics.jsonl")
    held_out = [r for r in records if r["event"] == "eval"]
    assert [r["step"] for r in held_out] == [0, 6, 12, 18, 24]
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    assert held_out[0]["unigram_entropy"] > 3
    train = [r for r in records if r["event"] == "train"]
    assert [r["step"] for r in train] == [5, 10, 15, 20, 24]
    assert train[-1]["learning_rate"] < train[1]["learning_rate"]
    assert all(0 < r["mfu"] < 1 for r in train)


class StopAfter(Stop):
    """Asked after each step; says yes after `num_steps` of them."""

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps

    def asked(self):
        self.num_steps -= 1
        return self.num_steps <= 0


def test_the_curve_of_a_run_that_was_stopped_is_not_drawn_yet(corpus, tmp_path, drawn):
    with pytest.raises(InterruptedRunError):
        pretrain(tiny(), data=corpus, run_dir=tmp_path, stop=StopAfter(3))
    assert not (tmp_path / "loss.png").exists()


def test_resumed_run_equals_uninterrupted_run(corpus, tmp_path, whole):
    stops = (3, 8, 17)  # between two checkpoints, and at one
    for first, stop in pairwise((0, *stops)):
        with pytest.raises(InterruptedRunError, match=f"saved at step {stop} of 24"):
            pretrain(tiny(), data=corpus, run_dir=tmp_path, stop=StopAfter(stop - first))
    pretrain(tiny(), data=corpus, run_dir=tmp_path)
    assert outcome(tmp_path) == whole


@pytest.mark.slow
def test_killed_run_equals_uninterrupted_run(corpus, tmp_path, whole):
    """SIGKILL in a real process between two checkpoints; the same command continues."""
    program = (  # its twelfth step is the last that it comes to
        "import sys, time, torch; from pathlib import Path;"
        "from smallbench.pretraining.pretrain import pretrain;"
        "from tests.pretraining.test_pretrain import Stop, tiny; torch.set_num_threads(1);"
        "steps = iter(range(11)); "
        "pretrain(tiny(), data=Path(sys.argv[1]), run_dir=Path(sys.argv[2]),"
        " stop=Stop(lambda: next(steps, None) is None and time.sleep(600)))"
    )
    command = [sys.executable, "-c", program, str(corpus), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    commit = tmp_path / "commits" / "step-0000000008.json"
    while not commit.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert CheckpointStore(tmp_path).newest().step < 24
    pretrain(tiny(), data=corpus, run_dir=tmp_path)
    assert outcome(tmp_path) == whole


def test_a_finished_run_is_left_as_it_is(corpus, tmp_path):
    pretrain(tiny(), data=corpus, run_dir=tmp_path)
    before = outcome(tmp_path)
    pretrain(tiny(), data=corpus, run_dir=tmp_path, resume="must")
    assert outcome(tmp_path) == before


def test_no_steps_give_the_initial_weights(corpus, tmp_path):
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path)
    assert CheckpointStore(tmp_path).newest().step == 0


def test_what_has_no_effect_is_noted(corpus, tmp_path, capsys):
    config = tiny(train__max_steps=0, train__milestones=(5,))
    pretrain(config, data=corpus, then_data=corpus, run_dir=tmp_path)
    said = capsys.readouterr().err
    assert "milestone 5 is beyond max_steps 0" in said
    assert "--then_data has rows of 32 tokens, as --data has" in said


def test_another_configuration_or_corpus_is_refused_by_name(corpus, tmp_path):
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"optim.learning_rate: 0.002 → 0.5"):
        pretrain(tiny(train__max_steps=0, optim__learning_rate=0.5), data=corpus, run_dir=tmp_path)


def test_another_corpus_is_refused(corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path / "run")
    pretrain(tiny(train__max_steps=0), data=other, run_dir=tmp_path / "run")  # the same, moved
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="data: "):
        pretrain(tiny(train__max_steps=0), data=other, run_dir=tmp_path / "run")


def test_a_flipped_bit_in_the_corpus_is_found_before_training(corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    shard = next(other.glob("train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        pretrain(tiny(), data=other, run_dir=tmp_path / "run")


def test_another_precision_is_refused(corpus, tmp_path):
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path)
    commit = next((tmp_path / "commits").iterdir())
    manifest = json.loads(commit.read_text())
    commit.write_text(json.dumps(sealed(manifest | {"precision": "fp16"})))
    with pytest.raises(ConfigError, match="was trained in fp16"):
        pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.num_eval_rows", 0),
        ("train.micro_batch_size", 0),
        ("train.seed", -1),
        ("model.num_attention_heads", 0),
        ("model.hidden_dropout_prob", 2.0),
        ("objective.mask_token_fraction", -0.1),
        ("optim.beta1", 2.0),
        ("optim.clip_norm", 0.0),
        ("schedule.warmup_fraction", 1.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        override_all(tiny(), {key: value})


def test_any_number_of_segments_is_taken_but_none():
    assert override_all(tiny(), {"model.type_vocab_size": 3}).model.type_vocab_size == 3
    with pytest.raises(ConfigError, match="type_vocab_size=0 is out of range; expected >= 1"):
        override_all(tiny(), {"model.type_vocab_size": 0})


def test_settings_that_only_observe_may_change(corpus, tmp_path):
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path)
    pretrain(tiny(train__max_steps=0, train__log_every_steps=1), data=corpus, run_dir=tmp_path)


def test_resume_must_and_never(corpus, tmp_path):
    with pytest.raises(ConfigError, match="requires a checkpoint"):
        pretrain(tiny(), data=corpus, run_dir=tmp_path / "a", resume="must")
    pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path / "b")
    with pytest.raises(ConfigError, match="has a run at step 0"):
        pretrain(tiny(train__max_steps=0), data=corpus, run_dir=tmp_path / "b", resume="never")


def test_two_processes_cannot_train_in_one_directory(corpus, tmp_path):
    with exclusive_lock(tmp_path / "lock", "held"), pytest.raises(ConflictError, match="another"):
        pretrain(tiny(), data=corpus, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence_length": 16}, "--sequence_length=16, but the corpus has rows of 32"),
        ({"model__vocab_size": 301}, "model.vocab_size 301 != the tokenizer's 300"),
        ({"train__precision": "fp16", "train__device": "cpu"}, "unusably slow"),
    ],
)
def test_flags_that_contradict_the_data_are_refused_before_anything_is_written(
    corpus, tmp_path, values, message
):
    with pytest.raises(ConfigError, match=message):
        pretrain(tiny(**values), data=corpus, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_corpus_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="smallbench prepare"):
        pretrain(tiny(), data=tmp_path / "nothing", run_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())
