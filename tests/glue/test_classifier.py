"""Fine-tuning computes transformers' functions, with our encoders if we have the network."""

import dataclasses
import shutil

import pytest
import torch
import transformers

from smallbench.batch import Batch
from smallbench.glue.classifier import Foreign, Native, build_classifier
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import finetune
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from smallbench.models import config as models
from smallbench.models.convert import target_of
from tests.glue.runs import check_run

QUICK = FinetuneConfig(epochs=1, max_train_examples=64, max_length=32, precision="fp32")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
EXPORTS = {
    "bert": (models.BertConfig, {"embedding_size": 32}, "tokens"),
    "bert-factorised": (models.BertConfig, {"embedding_size": 16}, "tokens"),
    "roberta": (models.RobertaConfig, {"embedding_size": 32}, "tokens"),
    "electra": (models.ElectraConfig, {"embedding_size": 16}, "replaced"),
    "deberta": (models.DebertaConfig, {"embedding_size": 16}, "tokens"),
    "electra-deberta": (models.DebertaConfig, {"max_relative_positions": 9}, "replaced"),
    "roformer": (models.RoformerConfig, {"embedding_size": 32}, "tokens"),
    "roformer-factorised": (models.RoformerConfig, {"embedding_size": 16}, "tokens"),
}
OTHER_OPTIONS = {
    "relu": (transformers.BertConfig, {"hidden_act": "relu"}),
    "decoder": (transformers.BertConfig, {"is_decoder": True}),
    "roberta with segments": (
        transformers.RobertaConfig,
        {"type_vocab_size": 2, "max_position_embeddings": 130},
    ),
    "distilbert": (transformers.DistilBertConfig, {"hidden_dim": 64}),
    "deberta without p2c": (
        transformers.DebertaConfig,
        {"relative_attention": True, "pos_att_type": ["c2p"], "position_biased_input": False},
    ),
    "deberta with positions": (transformers.DebertaConfig, {}),
    "roformer with rotated values": (transformers.RoFormerConfig, {"rotary_value": True}),
}


def save(config, model_class, model, directory):
    torch.manual_seed(0)
    made = model_class(config)
    for parameter in made.parameters():
        if parameter.requires_grad:  # RoFormer's sinusoids are a parameter that does not
            torch.nn.init.normal_(parameter, std=0.2)  # large, so that wrong wiring shows
    made.save_pretrained(directory)
    for path in model.glob("*token*"):
        shutil.copy(path, directory)
    return PretrainedEncoder(str(directory))


@pytest.fixture(params=EXPORTS)
def exported(request, model, tmp_path):
    """A model of each kind that an export can hold, under a tokenizer that knows token types."""
    config_class, values, head = EXPORTS[request.param]
    vocab_size = PretrainedEncoder(str(model)).config.vocab_size
    target = target_of(config_class(vocab_size=vocab_size, **SIZES, **values), head=head)
    model_class = getattr(transformers, target.class_name)
    return save(model_class.config_class(**target.config), model_class, model, tmp_path)


@pytest.fixture(params=OTHER_OPTIONS)
def foreign(request, model, tmp_path):
    """Models with something that our encoders do not have."""
    config_class, values = OTHER_OPTIONS[request.param]
    vocab_size = PretrainedEncoder(str(model)).config.vocab_size
    config = config_class(**{"vocab_size": vocab_size, "pad_token_id": 0, **SIZES, **values})
    return save(config, transformers.AutoModel.from_config, model, tmp_path)


def padded_batch(encoder) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(5, encoder.config.vocab_size, (4, 24), generator=generator)
    mask_BL = torch.arange(24) < torch.tensor([24, 20, 9, 2])[:, None]
    ids_BL[~mask_BL] = encoder.config.pad_token_id
    types_BL = (torch.arange(24) > 4).long().expand(4, 24) if encoder.has_token_types else None
    return Batch(ids_BL, mask_BL, types_BL)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_every_export_is_fine_tuned_in_every_precision(exported, precision, glue, tmp_path):
    config = dataclasses.replace(QUICK, precision=precision)
    data = load_task(TASKS["mrpc"], glue)
    result = finetune(exported, data, config, learning_rate=1e-3, seed=1, out=tmp_path / "out")
    assert check_run(run_directory(tmp_path / "out", result.settings), data) == result


def test_our_encoder_under_their_head_computes_their_logits(exported):
    batch = padded_batch(exported)
    for task in ("cola", "mnli", "stsb"):
        theirs = exported.transformers_classifier(TASKS[task]).eval()
        ours = build_classifier(theirs, pads_left=False).eval()
        assert isinstance(ours, Native)
        with torch.no_grad():
            torch.testing.assert_close(ours(batch), Foreign(theirs)(batch), rtol=0, atol=1e-5)


def test_a_roformer_with_other_positions_is_not_taken_for_ours(model, tmp_path):
    vocab_size = PretrainedEncoder(str(model)).config.vocab_size
    config = transformers.RoFormerConfig(vocab_size=vocab_size, pad_token_id=0, **SIZES)
    encoder = save(config, transformers.AutoModel.from_config, model, tmp_path)
    theirs = encoder.transformers_classifier(TASKS["cola"])
    assert isinstance(build_classifier(theirs, pads_left=False), Native)
    with torch.no_grad():
        theirs.roformer.encoder.embed_positions.weight[3, 1] += 0.01
    assert isinstance(build_classifier(theirs, pads_left=False), Foreign)


def test_all_weights_that_are_theirs_are_trained(exported):
    """No weight keeps the initial value of our encoder, and every tensor gets a gradient."""
    theirs = exported.transformers_classifier(TASKS["cola"])
    ours = build_classifier(theirs, pads_left=False)
    ours(padded_batch(exported)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    counted = sum(p.numel() for p in ours.parameters())
    padding = ours.encoder.embeddings.tokens.weight.numel() - (
        exported.config.vocab_size * ours.encoder.config.embedding_size
    )
    skipped = 0
    if theirs.config.model_type == "roberta":  # rows before the first position
        skipped = (theirs.config.pad_token_id + 1) * theirs.config.hidden_size
    if (
        theirs.config.model_type == "roformer"
    ):  # sinusoids: constants, until transformers loads them
        skipped = theirs.roformer.encoder.embed_positions.weight.numel()
    assert counted - padding == sum(p.numel() for p in theirs.parameters()) - skipped


def test_other_networks_stay_transformers(foreign, glue, tmp_path):
    assert isinstance(foreign.classifier(TASKS["cola"]), Foreign)
    config = dataclasses.replace(QUICK, precision="bf16")
    data = load_task(TASKS["rte"], glue)
    result = finetune(foreign, data, config, learning_rate=1e-3, seed=1, out=tmp_path / "out")
    assert check_run(run_directory(tmp_path / "out", result.settings), data) == result


def test_rows_padded_on_the_left_stay_transformers(model):
    theirs = PretrainedEncoder(str(model)).transformers_classifier(TASKS["cola"])
    assert isinstance(build_classifier(theirs, pads_left=True), Foreign)
    assert isinstance(build_classifier(theirs, pads_left=False), Native)
