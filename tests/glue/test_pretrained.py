"""Foreign encoders are fine-tuned as transformers' own class is, or refused in one sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from smallbench.errors import ConfigError, DataError, SmallbenchError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import finetune, tokenize_task
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import read_predictions, read_run, run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from tests.glue import foreign

RATE, SEED = 1e-3, 3
QUICK = FinetuneConfig(epochs=2, max_train_examples=48, max_length=32, precision="fp32")
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from a class's name to its model as transformers saves it, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = foreign.build(name, tmp_path_factory.mktemp("saved") / "m")
        return made[name]

    logging.disable_progress_bar()
    return get


@pytest.fixture(scope="module")
def stsb(glue):
    """Its predictions are numbers, which show any difference of two models."""
    return load_task(TASKS["stsb"], glue)


@pytest.fixture
def bert(saved, tmp_path):
    """A copy to damage."""
    return foreign.copy(saved("BertForMaskedLM"), tmp_path / "bert")


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


DAMAGE = {
    "a git-lfs pointer": (
        lambda d: (d / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 438\n"
        ),
        "git lfs pull",
    ),
    "a tokenizer that is a pointer": (
        lambda d: (d / "tokenizer.json").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 438\n"
        ),
        "git lfs pull",
    ),
    "half a file": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:20_000]
        ),
        "damaged or truncated",
    ),
    "an empty file": (lambda d: (d / "model.safetensors").write_bytes(b""), "damaged or truncated"),
    "half a bin": (
        lambda d: (
            foreign.as_bin(d),
            (d / "pytorch_model.bin").write_bytes((d / "pytorch_model.bin").read_bytes()[:20_000]),
        ),
        "damaged",
    ),
    "objects in a bin": (
        lambda d: (
            torch.save({"weights": FinetuneConfig()}, d / "pytorch_model.bin"),
            (d / "model.safetensors").unlink(),
        ),
        "never loaded",
    ),
    "a missing shard": (
        lambda d: (foreign.as_shards(d), (d / "model-00002-of-00002.safetensors").unlink()),
        "lacks model-00002-of-00002.safetensors",
    ),
    "a shard outside the folder": (
        lambda d: (
            foreign.as_shards(d),
            edit(d / "model.safetensors.index.json", weight_map={"a": "../model.safetensors"}),
        ),
        "'../model.safetensors'; expected names of files in its own folder",
    ),
    "two equal lines of vocab.txt": (
        lambda d: (d / "vocab.txt").write_text("[PAD]\nab\n[UNK]\nab\n"),
        "'ab' in lines 2 and 4",
    ),
    "another shape": (
        lambda d: edit(d / "config.json", hidden_size=64),
        "belong to different models",
    ),
    "fewer layers than its file": (
        lambda d: edit(d / "config.json", num_hidden_layers=1),
        "layers that config.json does not have",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
    "NaN": (
        lambda d: save_file(
            {k: t * float("nan") for k, t in load_file(d / "model.safetensors").items()},
            d / "model.safetensors",
        ),
        "NaN",
    ),
    "integers": (
        lambda d: change(d, lambda name, t: (t * 127).to(torch.int8)),
        "dtype torch.int8; expected a model in full or half precision",
    ),
    "eight bits": (
        lambda d: change(d, lambda name, t: t.to(torch.float8_e4m3fn)),
        "dtype torch.float8_e4m3fn",
    ),
    "zeros": (lambda d: change(d, lambda name, t: t * 0), "all weights are zero"),
    "two models under two names": (
        lambda d: save_file(
            foreign.state_of(d)
            | {k.removeprefix("bert."): t.clone() for k, t in foreign.state_of(d).items()},
            d / "model.safetensors",
        ),
        "also as bert.embeddings",
    ),
    "no layer in its config": (
        lambda d: edit(d / "config.json", num_hidden_layers=0),
        "layers that config.json does not have",
    ),
    "a broken link": (
        lambda d: (
            (d / "model.safetensors").unlink(),
            (d / "model.safetensors").symlink_to("../blobs/1"),
        ),
        "link to a file that is missing",
    ),
    "a vocab.txt in another order": (
        lambda d: (d / "vocab.txt").write_text("\n".join(reversed(foreign.VOCABULARY))),
        r"'-' is 71 in the tokenizer, 0 in vocab.txt \(72 tokens differ\)",
    ),
    "a vocab.txt without [CLS]": (
        lambda d: (
            (d / "tokenizer.json").unlink(),
            (d / "vocab.txt").write_text("\n".join(t for t in foreign.VOCABULARY if t != "[CLS]")),
        ),
        r"cls token '\[CLS\]' is in none of the tokenizer's files",
    ),
    "an unknown prefix": (
        lambda d: save_file(
            {f"net.{k}": t for k, t in load_file(d / "model.safetensors").items()},
            d / "model.safetensors",
        ),
        "first name is net.bert",
    ),
    "an impossible config": (
        lambda d: edit(d / "config.json", num_attention_heads=3),
        "does not describe a valid",
    ),
    "a value of another type": (
        lambda d: edit(d / "config.json", vocab_size="many"),
        "cannot be loaded",
    ),
    "a config that is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be loaded"),
    "an unknown model type": (
        lambda d: edit(d / "config.json", model_type="notyet"),
        "cannot be loaded",
    ),
    "a newer tokenizer.json": (
        lambda d: (
            (d / "tokenizer.json").write_text('{"version":"2.0","model":{"type":"New"}}'),
            edit(d / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
        ),
        "newer release",
    ),
    "no tokenizer": (
        lambda d: [path.unlink() for path in (*d.glob("*token*"), *d.glob("vocab*"))],
        "has no tokenizer",
    ),
    "a token beyond the embedding": (
        lambda d: add_token(d, "movie"),
        r"'movie' \(72\)",
    ),
    "two padding tokens": (lambda d: edit(d / "config.json", pad_token_id=1), "pad_token_id 1"),
    "quantized weights": (
        lambda d: edit(d / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "quantized",
    ),
}


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(directory, new):
    state = {name: new(name, tensor) for name, tensor in foreign.state_of(directory).items()}
    save_file(state, directory / "model.safetensors")


def with_backend(directory, **parts):
    """Give the tokenizer.json other parts."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.save(str(directory / "tokenizer.json"))


def as_generic(directory):
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (directory / "vocab.txt").unlink()


TOLD = {
    "code that is not run": (
        lambda d: edit(
            d / "config.json", auto_map={"AutoModelForSequenceClassification": "own.Own"}
        ),
        "has code of its own (own.Own), which is not run",
    ),
    "a tokenizer.json that transformers does not follow": (
        lambda d: with_backend(d, pre_tokenizer=tokenizers.pre_tokenizers.WhitespaceSplit()),
        "BertTokenizer of transformers gives other ids than tokenizer.json, such as for 'The State",
    ),
    "a tokenizer that adds no special tokens": (
        lambda d: (
            as_generic(d),
            with_backend(d, post_processor=tokenizers.processors.TemplateProcessing("$A", "$A $B")),
        ),
        "its tokenizer adds no [CLS] to a text",
    ),
    "some weights that are zero": (
        lambda d: change(d, lambda name, t: t * ("query.weight" not in name)),
        "2 matrices are zero, such as bert.encoder.layer.0.attention.self.query.weight",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_makes_a_model_another_one_is_told(name, bert, capsys):
    damage, sentence = TOLD[name]
    PretrainedEncoder(str(bert))
    assert sentence not in capsys.readouterr().err
    damage(bert)
    PretrainedEncoder(str(bert))
    assert sentence in capsys.readouterr().err


def test_a_tokenizer_that_drops_what_it_does_not_know_is_refused(bert, stsb):
    as_generic(bert)
    letters = {token: i for i, token in enumerate([*foreign.VOCABULARY[:5], "q", "z"])}
    edit(bert / "tokenizer_config.json", unk_token=None)
    for unknown in (None, "[UNK]"):
        with_backend(bert, model=tokenizers.models.BPE(letters, [], unk_token=unknown))
        with pytest.raises(DataError, match=r"\d\d\.\d% of the tokens"):
            tokenize_task(PretrainedEncoder(str(bert)), stsb.first(32), QUICK)


def test_a_file_or_a_name_that_no_hub_has_is_no_model(bert):
    for name in (str(bert / "config.json"), "bert base", "a/b/c", "-x"):
        with pytest.raises(DataError, match="is not a directory"):
            PretrainedEncoder(name)


def add_token(directory, token):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_or_unsuitable_files_are_refused_with_one_sentence(name, bert):
    damage, sentence = DAMAGE[name]
    damage(bert)
    with pytest.raises(SmallbenchError, match=sentence) as refused:
        PretrainedEncoder(str(bert))
    assert refused.value.exit_code == 65
    assert "\n" not in str(refused.value)


def test_a_model_that_nobody_knows_how_to_pad_is_refused(saved, tmp_path):
    directory = foreign.copy(saved("GPT2LMHeadModel"), tmp_path / "m")
    edit(directory / "config.json", pad_token_id=None)
    forget_padding(directory)
    with pytest.raises(DataError, match="has no padding token"):
        PretrainedEncoder(str(directory))


def forget_padding(directory):
    edit(directory / "tokenizer_config.json", pad_token=None)
    (directory / "special_tokens_map.json").unlink(missing_ok=True)


def test_a_padding_token_that_one_of_two_files_names_is_both_files(saved, tmp_path):
    for name, change in {
        "config only": lambda d: forget_padding(d),
        "tokenizer only": lambda d: edit(d / "config.json", pad_token_id=None),
        "a number for none": lambda d: edit(d / "config.json", pad_token_id=-1),
    }.items():
        directory = foreign.copy(saved("LlamaForCausalLM"), tmp_path / name)
        change(directory)
        encoder = PretrainedEncoder(str(directory))
        assert encoder.tokenizer.pad_token_id == encoder.config.pad_token_id == 0
        encoder.check_length(32)


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
