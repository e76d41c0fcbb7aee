"""What is wrong with the files of a foreign encoder is said in one sentence."""

import json

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from smallbench.errors import DataError, SmallbenchError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import tokenize_task
from smallbench.glue.fingerprint import files_sha256
from smallbench.glue.pretrained import PretrainedEncoder
from tests.glue import foreign
from tests.glue.foreign import QUICK, add_token


@pytest.fixture
def bert(saved, tmp_path):
    """A copy to damage."""
    return foreign.copy(saved("BertForMaskedLM"), tmp_path / "bert")


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


def edited(file, **changes):
    return lambda d: (d / file).write_text(json.dumps(json.loads((d / file).read_text()) | changes))


@pytest.mark.parametrize(
    ("edit", "has_code", "is_another"),
    [
        (edited("config.json", hidden_act="relu"), False, True),
        (edited("config.json", _name_or_path="x", transformers_version="4.0.0"), False, False),
        (edited("config.json", architectures=["BertModel"], dtype="bfloat16"), False, False),
        (edited("tokenizer.json", normalizer={"type": "Lowercase"}), False, True),
        (edited("tokenizer.json", truncation=None, version="2"), False, False),
        (edited("tokenizer_config.json", do_lower_case=False), False, True),
        (edited("tokenizer_config.json", name_or_path="x", is_local=True), False, False),
        (lambda d: (d / "modeling.py").write_text("x = 1"), True, True),
        (lambda d: (d / "modeling.py").write_text("x = 1"), False, False),
    ],
)
def test_the_fingerprint_of_files_changes_with_what_is_computed(edit, has_code, is_another, bert):
    tokenizer = PretrainedEncoder(str(bert)).tokenizer
    before = files_sha256(str(bert), tokenizer, has_code=has_code)
    edit(bert)
    assert (files_sha256(str(bert), tokenizer, has_code=has_code) != before) == is_another


def test_the_fingerprint_of_files_holds_a_vocabulary_without_tokenizer_json(bert):
    tokenizer = PretrainedEncoder(str(bert)).tokenizer
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    (bert / "tokenizer.json").unlink()
    hashes = set()
    for known in (words, [*words[:-2], words[-1], words[-2]]):
        (bert / "vocab.txt").write_text("\n".join(known) + "\n")
        hashes.add(PretrainedEncoder(str(bert)).files_sha256)
    assert len(hashes) == 2


def test_a_file_or_a_name_that_no_hub_has_is_no_model(bert):
    for name in (str(bert / "config.json"), "bert base", "a/b/c", "-x"):
        with pytest.raises(DataError, match="is not a directory"):
            PretrainedEncoder(name)


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
