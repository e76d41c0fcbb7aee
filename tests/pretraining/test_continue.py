"""Second phases, FLOPs budgets and initial weights: exact resume, and what is refused."""

import random
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from smallbench.checkpoints.store import CheckpointStore
from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.errors import (
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    UnavailableError,
)
from smallbench.export.huggingface import export
from smallbench.pretraining.pretrain import pretrain
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.config import CosineSchedule, MuonConfig
from tests.pretraining.test_pretrain import StopAfter, outcome, tiny

LONG = {"model__max_position_embeddings": 64}


@pytest.fixture(scope="module")
def long_corpus(corpus, tmp_path_factory):
    """Rows of 64 tokens with the tokenizer of `corpus`."""
    folder, draw = tmp_path_factory.mktemp("long"), random.Random(1)
    words = ["".join(draw.choices("aeioubcdfglmnprst", k=5)) for _ in range(200)]
    documents = [" ".join(draw.choices(words, k=300)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    config = PrepareConfig(
        corpus=str(folder / "text.txt"),
        tokenizer=str(corpus / "tokenizer"),
        sequence_length=64,
        eval_fraction=0.1,
    )
    prepare(config, out=folder / "prepared", workers=1)
    return folder / "prepared"


def weights_of(run_dir):
    return load_file(CheckpointStore(run_dir).newest().directory / "module.safetensors")


def test_a_second_phase_has_longer_rows_and_resumes_exactly(corpus, long_corpus, tmp_path):
    config = tiny(**LONG, train__max_steps=20, train__log_every_steps=1, then__begin_fraction=0.5)
    arguments = {"data": corpus, "then_data": long_corpus}
    pretrain(config, run_dir=tmp_path / "whole", **arguments)
    for steps in (9, 5):  # the second interruption is in the second phase
        with pytest.raises(InterruptedRunError):
            pretrain(config, run_dir=tmp_path / "parts", stop=StopAfter(steps), **arguments)
    pretrain(config, run_dir=tmp_path / "parts", **arguments)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    train = [r for r in read_metrics(tmp_path / "whole" / "metrics.jsonl") if r["event"] == "train"]
    # Attention costs more in longer rows, while a step has as many tokens.
    flops = [b["train_flops"] - a["train_flops"] for a, b in pairwise(train)]
    assert min(flops[11:]) > max(flops[:9])
    assert {r["tokens"] for r in train} == {256 * n for n in range(1, 21)}


@pytest.mark.parametrize(
    ("values", "has_data", "said"),
    [
        ({"then__sequence_length": 64}, False, "then.sequence_length 64 needs --then_data"),
        ({"then__sequence_length": 48}, True, "then.sequence_length 48 != 64 of --then_data"),
        ({"then__corpus": "0" * 64}, True, "another corpus than then.corpus names"),
    ],
)
def test_a_second_phase_that_does_not_fit_its_corpus_is_refused(
    corpus, long_corpus, tmp_path, values, has_data, said
):
    with pytest.raises(ConfigError, match=said):
        pretrain(
            tiny(**LONG, **values),
            data=corpus,
            then_data=long_corpus if has_data else None,
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_flipped_bit_in_the_second_corpus_is_found_before_training(corpus, long_corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(long_corpus, other)
    shard = next(other.glob("train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        pretrain(tiny(**LONG), data=corpus, then_data=other, run_dir=tmp_path / "run")


def test_rows_longer_than_the_positions_are_refused(corpus, long_corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"then\.sequence_length 64 is over model\.max_position"):
        pretrain(tiny(), data=corpus, then_data=long_corpus, run_dir=tmp_path / "run")


def test_a_run_ends_with_its_flops_and_resumes_exactly(corpus, tmp_path):
    one = tiny(train__max_steps=1)
    pretrain(one, data=corpus, run_dir=tmp_path / "one")
    flops = CheckpointStore(tmp_path / "one").newest().manifest["progress"]["train_flops"]
    config = tiny(train__max_flops=9.5 * flops, schedule__along="flops")
    config = replace(
        config, optim=MuonConfig(), schedule=CosineSchedule(along="flops", warmup_fraction=0.2)
    )
    pretrain(config, data=corpus, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRunError, match=r"saved at step 4; "):
        pretrain(config, data=corpus, run_dir=tmp_path / "parts", stop=StopAfter(4))
    pretrain(config, data=corpus, run_dir=tmp_path / "parts")
    found = outcome(tmp_path / "parts")
    assert found == outcome(tmp_path / "whole")
    last = [r for r in found[3] if r["event"] == "train"][-1]
    assert 9 <= found[0] <= 11
    assert last["train_flops"] >= 9.5 * flops
    assert last["learning_rate"] < 0.2 * config.optim.learning_rate


def test_flops_without_a_limit_are_refused():
    with pytest.raises(ConfigError, match=r"schedule\.along 'flops' needs train\.max_flops"):
        tiny(schedule__along="flops")


def test_a_run_whose_steps_were_all_skipped_is_not_done(corpus, tmp_path):
    config = tiny(
        train__max_steps=10, optim__learning_rate=1e30, schedule__warmup_fraction=0.0,
        train__save_every_steps=10,
    )  # fmt: skip
    for _ in range(2):  # the second attempt finds a checkpoint of the last step
        with pytest.raises(DivergedError, match="steps in a row, the last of them step 10"):
            pretrain(config, data=corpus, run_dir=tmp_path / "run")


# Initial weights


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("first") / "run"
    pretrain(tiny(train__max_steps=6), data=corpus, run_dir=run_dir)
    return run_dir


def begin(corpus, run_dir, source, **values):
    """The weights that a run begins with."""
    config = tiny(train__max_steps=0, train__init_from=str(source), **values)
    pretrain(config, data=corpus, run_dir=run_dir)
    return weights_of(run_dir)


def test_a_run_begins_with_the_weights_of_another(corpus, tmp_path, first, capsys):
    found, expected = begin(corpus, tmp_path / "run", first), weights_of(first)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert f"loaded {len(expected)} of {len(expected)} weights" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["bert", "roformer"])
def test_a_run_begins_with_the_weights_of_an_export(corpus, tmp_path, architecture):
    values = {"model__architecture": architecture, "model__attention_init": "normal"}
    pretrain(tiny(train__max_steps=2, **values), data=corpus, run_dir=tmp_path / "first")
    export(tmp_path / "first", tmp_path / "export")
    found = begin(corpus, tmp_path / "run", tmp_path / "export", **values)
    expected = weights_of(tmp_path / "first")
    for name, weight in expected.items():
        # Rows of padding are not exported.
        rows = slice(300) if weight.shape[0] == 320 else slice(None)
        assert torch.equal(found[name][rows], weight[rows]), name


def test_unloaded_weights_are_reported(corpus, tmp_path, first, capsys):
    begin(corpus, tmp_path / "run", first, model__num_hidden_layers=3)
    said = capsys.readouterr().err
    assert "missing there, initialized randomly: model.layers.2.attention.out.bias" in said
    begin(corpus, tmp_path / "fewer", first, model__num_hidden_layers=1)
    said = capsys.readouterr().err
    assert "not part of this run, ignored: model.layers.1." in said


def test_other_shapes_and_other_tokenizers_are_refused(corpus, tmp_path, first, long_corpus):
    with pytest.raises(DataError, match=r"model\.\S+ has the shape \[.*\], but \[.*\] in"):
        begin(corpus, tmp_path / "wide", first, model__intermediate_size=128)
    with pytest.raises(DataError, match="is not a directory; expected the directory of"):
        begin(corpus, tmp_path / "none", tmp_path / "no such model")
    with pytest.raises(DataError, match=r"is neither a Hugging Face model .* nor a run"):
        begin(corpus, tmp_path / "folder", corpus)


def test_a_model_that_the_hub_does_not_give_is_unavailable(corpus, tmp_path, capsys):
    with pytest.raises(UnavailableError, match="--init_from=org/none cannot be loaded"):
        begin(corpus, tmp_path / "run", "org/none")
    asked = "org/none is not a local directory; asking the Hugging Face hub\n"
    assert asked in capsys.readouterr().err


def test_initial_weights_are_not_read_again_by_a_resumed_run(corpus, tmp_path, first):
    config = tiny(train__max_steps=6, train__init_from=str(first))
    pretrain(config, data=corpus, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        pretrain(config, data=corpus, run_dir=tmp_path / "parts", stop=StopAfter(3))
    pretrain(config, data=corpus, run_dir=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
