"""Laws of whole runs that hold for every family: golden losses, and exact resume."""

import json
from pathlib import Path

import pytest

from smallbench.config import override_all
from smallbench.errors import ConfigError, InterruptedRunError, UnavailableError
from smallbench.pretraining.pretrain import pretrain
from smallbench.recipes import RECIPES
from smallbench.tracking.jsonl import read_metrics
from tests.pretraining.test_pretrain import VALUES, StopAfter, outcome

FAMILIES = ("bert", "roberta", "deberta", "electra", "electra-deberta", "modern")
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def small(family, **values):
    """The family's tiny recipe, smaller still."""
    changed = {**VALUES, **{key.replace("__", "."): value for key, value in values.items()}}
    if family == "roberta":
        changed["model.embedding_size"] = 32
    return override_all(RECIPES[f"{family}-tiny"](), changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_twenty_steps_are_golden(family, corpus, tmp_path):
    """To replace them on purpose: write the values that this test prints to golden.json."""
    config = small(family, train__max_steps=20, train__precision="fp32", train__log_every_steps=1)
    pretrain(config, data=corpus, run_dir=tmp_path)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["event"] == "train"]
    losses = [round(record["loss"], 5) for record in records]
    print(json.dumps({family: losses}))
    assert losses == pytest.approx(GOLDEN[family], rel=1e-4)


SHARINGS = [("electra", {"objective__embedding_sharing": s}) for s in
            ("gradient_disentangled", "none")]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "values"),
    [
        (FAMILIES[4], {}),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in (*((family, {}) for family in (*FAMILIES[1:4], "modern")), *SHARINGS)),
    ],
)  # fmt: skip
def test_resumed_run_equals_uninterrupted_run(family, values, corpus, tmp_path):
    config = small(family, train__max_steps=16, **values)
    pretrain(config, data=corpus, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        pretrain(config, data=corpus, run_dir=tmp_path / "parts", stop=StopAfter(7))
    pretrain(config, data=corpus, run_dir=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


# electra-deberta has the networks and the losses of deberta and electra; roberta is bert's network,
# of which a single step is in tests/train/test_compile.py.
COMPILED = [
    family if family in {"electra-deberta", "modern"}
    else pytest.param(family, marks=pytest.mark.exhaustive)
    for family in FAMILIES
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPILED)
def test_compiled_equals_eager(family, corpus, tmp_path):
    """Without dropout, whose numbers a compiler may draw in another order."""
    losses = []
    for compile in (False, True):
        config = small(
            family,
            train__max_steps=4,
            train__precision="fp32",
            train__log_every_steps=1,
            train__compile=compile,
            model__hidden_dropout_prob=0.0,
            model__attention_probs_dropout_prob=0.0,
        )
        pretrain(config, data=corpus, run_dir=tmp_path / str(compile))
        records = read_metrics(tmp_path / str(compile) / "metrics.jsonl")
        losses.append([r["loss"] for r in records if r["event"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_both_networks_are_watched(corpus, tmp_path, drawn):
    pretrain(small("electra", train__max_steps=6), data=corpus, run_dir=tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    held_out = [r for r in records if r["event"] == "eval"][-1]
    train = [r for r in records if r["event"] == "train"][-1]
    for record in (held_out, train):
        assert record["loss"] == pytest.approx(
            record["generator_loss"] + 50 * record["discriminator_loss"], rel=1e-5
        )
        assert 0 <= record["discriminator_accuracy"] <= 1
    assert "generator_accuracy" in held_out
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        ("deberta", {"objective__two_segment_fraction": 0.5}, r"two_segment_fraction 0\.5"),
        ("electra", {"objective__generator_width": 0.3}, "generator_width"),
        ("bert", {"sequence_length": 256}, "max_position_embeddings"),
        ("bert", {"sequence_length": 7}, "sequence_length=7"),
    ],
)
def test_contradictions_are_refused_before_a_run_begins(family, values, said):
    with pytest.raises(ConfigError, match=said):
        small(family, **values)


def test_compiling_without_a_compiler_is_one_sentence(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = small("bert", train__compile=True, train__device="cpu")
    with pytest.raises(UnavailableError, match="no-such-compiler cannot be found"):
        pretrain(config, data=corpus, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
