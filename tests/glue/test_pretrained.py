"""Foreign encoders are fine-tuned as transformers' own class is, however they are saved."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from smallbench.errors import ConfigError, DataError
from smallbench.glue.finetune import finetune, tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder, _num_embeddings
from smallbench.glue.results import read_predictions, read_run, run_directory
from smallbench.glue.tasks import TASKS
from tests.glue import foreign
from tests.glue.foreign import QUICK, add_token

RATE, SEED = 1e-3, 3
LATER = [name for name in foreign.VARIANTS if name != "safetensors"]
KINDS = (
    "BertForMaskedLM", "RobertaForMaskedLM", "ElectraForPreTraining", "DebertaForMaskedLM",
    "ModernBertForMaskedLM", "T5ForConditionalGeneration", "GPT2LMHeadModel",
)  # fmt: skip
"""Ours, one with a head of pretraining, an encoder-decoder, a decoder; all classes are slow."""
CLASSES = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.slow)
    for name in foreign.CLASSES
]
ONE_EACH = [(name, LATER[i % len(LATER)]) for i, name in enumerate(KINDS)]
ALL = [(name, variant) for name in foreign.CLASSES for variant in LATER]


def started(directory):
    """The weights that a run begins with."""
    torch.manual_seed(SEED)
    return PretrainedEncoder(str(directory)).transformers_classifier(TASKS["mnli"]).state_dict()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_fine_tuned_as_transformers_own(name, saved, stsb, tmp_path):
    directory = foreign.copy(saved(name), tmp_path / "m")
    foreign.without_dropout(directory)
    encoder, data = PretrainedEncoder(str(directory)), stsb.first(QUICK.max_train_examples)
    result = finetune(encoder, data, QUICK, learning_rate=RATE, seed=SEED, out=tmp_path / "out")
    ours = read_predictions(run_directory(tmp_path / "out", result.settings), data.task, "dev")
    theirs = foreign.their_predictions(
        encoder, directory, data, QUICK, learning_rate=RATE, seed=SEED
    )
    np.testing.assert_allclose(ours, theirs.squeeze(1), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("name", "variant"), ONE_EACH)
def test_the_same_weights_start_the_same_run_however_they_are_saved(
    name, variant, saved, tmp_path, capsys
):
    directory = foreign.copy(saved(name), tmp_path / "m")
    foreign.VARIANTS[variant](directory)
    expected = foreign.their_classifier(saved(name), TASKS["mnli"], SEED).state_dict()
    # ModernBERT keeps the head of its pretraining. Without that, its own is drawn first.
    head_of_pretraining = {"head.dense.weight", "head.norm.weight", "classifier.weight"}
    for key, tensor in started(directory).items():
        if variant != "a foreign head" or key not in head_of_pretraining:
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, msg=key)
    if variant == "wrapped":
        told = capsys.readouterr().err
        assert "removed 'model' and 'state_dict' and '_orig_mod.' and 'module.' around" in told


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "variant"), [pair for pair in ALL if pair not in ONE_EACH])
def test_all_classes_start_the_same_run_however_they_are_saved(
    name, variant, saved, tmp_path, capsys
):
    test_the_same_weights_start_the_same_run_however_they_are_saved(
        name, variant, saved, tmp_path, capsys
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_that_no_file_holds_is_refused_by_name(name, saved, tmp_path):
    directory = foreign.copy(saved(name), tmp_path / "m")
    missing = foreign.drop_a_layer(directory)
    with pytest.raises(DataError, match=rf"lacks {len(missing)} weights of the encoder") as refused:
        PretrainedEncoder(str(directory))
    assert missing[0] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("is_plain", [False, True])
def test_code_of_the_models_own_runs_only_when_asked_for(is_plain, tmp_path):
    directory = foreign.remote_code(tmp_path / f"m{is_plain}", is_plain=is_plain)
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        PretrainedEncoder(str(directory))
    encoder = PretrainedEncoder(str(directory), trust_remote_code=True)
    encoder.check_length(32)
    torch.manual_seed(SEED)
    ours = encoder.transformers_classifier(TASKS["mnli"]).state_dict()
    torch.manual_seed(SEED)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=3, trust_remote_code=True
    )
    assert all(torch.equal(ours[k], t) for k, t in theirs.state_dict().items())
    add_token(directory, "movie")
    with pytest.raises(DataError, match="'movie'"):
        PretrainedEncoder(str(directory), trust_remote_code=True)


@pytest.mark.parametrize("num_labels", [2, 3, 9])
@pytest.mark.parametrize("named", [True, False])
def test_no_head_of_another_task_is_kept(num_labels, named, saved, tmp_path):
    heads = []
    for value in (0.0, 7.0):
        config = transformers.BertConfig.from_pretrained(saved("BertForMaskedLM"))
        config.num_labels = num_labels
        torch.manual_seed(0)
        model = transformers.BertForTokenClassification(config)
        torch.nn.init.constant_(model.classifier.bias, value)
        directory = foreign.copy(saved("BertForMaskedLM"), tmp_path / str(value))
        model.save_pretrained(directory)
        if not named:
            content = json.loads((directory / "config.json").read_text())
            del content["architectures"]
            (directory / "config.json").write_text(json.dumps(content))
        heads.append(started(directory))
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    assert heads[0]["classifier.bias"].abs().max() == 0


@pytest.mark.parametrize("name", ["CamembertForMaskedLM", "MPNetForMaskedLM", "GPT2LMHeadModel"])
def test_the_longest_rows_are_those_that_the_model_accepts(name, saved):
    encoder = PretrainedEncoder(str(saved(name)))
    with pytest.raises(ConfigError, match=r"set --max_length=(\d+)") as refused:
        encoder.check_length(200)
    longest = int(str(refused.value).rpartition("=")[2])
    with pytest.raises(ConfigError, match="--max_length=3 leaves no room for text"):
        encoder.check_length(3)
    encoder.check_length(longest)
    with pytest.raises(ConfigError):
        encoder.check_length(longest + 1)


def with_text(data, text):
    """`data` with `text` in the place of every first text."""
    splits = {
        name: replace(split, first=(text,) * len(split)) for name, split in data.splits.items()
    }
    return replace(data, splits=splits)


def test_rows_are_not_padded_beyond_the_last_position(saved, stsb, tmp_path):
    """129 is the last length that this model accepts, and no multiple of 8."""
    encoder = PretrainedEncoder(str(saved("CamembertForMaskedLM")))
    config = replace(QUICK, epochs=1, max_train_examples=32, max_length=129)
    data = with_text(stsb.first(32), "a very long row " * 40)
    assert max(tokenize_task(encoder, data, config)["train"].lengths()) == 129
    finetune(encoder, data, config, learning_rate=RATE, seed=1, out=tmp_path)


def test_the_share_of_unknown_tokens_is_shown_stored_and_refused(saved, stsb, tmp_path, capsys):
    encoder = PretrainedEncoder(str(saved("BertForMaskedLM")))
    half = with_text(stsb.first(32), "กา " * 12 + "a b c d e f g h i j k l")
    result = finetune(encoder, half, QUICK, learning_rate=RATE, seed=1, out=tmp_path)
    stored = read_run(run_directory(tmp_path, result.settings)).unknown_share
    assert 0.1 < stored["train"] < 0.5
    assert f"STS-B: {max(stored.values()):.1%} of the tokens" in capsys.readouterr().err
    for text in ("กา กา", " "):
        splits = {n: replace(e, second=(text,) * len(e)) for n, e in half.splits.items()}
        unread = with_text(replace(half, splits=splits), text)
        with pytest.raises(DataError, match="expected the tokenizer"):
            tokenize_task(encoder, unread, QUICK)


def test_a_model_that_does_not_name_its_table_of_tokens_is_reported(capsys):
    largest = torch.nn.ModuleList([torch.nn.Embedding(7, 2), torch.nn.Embedding(30, 2)])
    assert _num_embeddings("own", largest) == 30
    assert "own: the model's code does not say which table" in (said := capsys.readouterr().err)
    assert "largest table (30 rows)" in said
    assert _num_embeddings("own", torch.nn.Linear(2, 2)) > 2**40
    assert "token ids are unchecked" in capsys.readouterr().err
