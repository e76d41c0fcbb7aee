"""Poolings under the shared head: padding changes nothing, and results name the pooling."""

from dataclasses import replace

import pytest
import torch

from smallbench.batch import Batch
from smallbench.errors import ConfigError
from smallbench.glue import POOLINGS
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.finetune import finetune
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.protocols import departures, protocol_named
from smallbench.glue.results import read_run, run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from tests.glue import foreign

QUICK = FinetuneConfig(epochs=1, max_train_examples=48, max_length=32, precision="fp32")


def test_each_pooling_computes_what_its_name_says():
    hidden = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert POOLINGS["first"](hidden, mask).tolist() == [[1, 5]]
    assert POOLINGS["mean"](hidden, mask).tolist() == [[2, 3]]
    assert POOLINGS["max"](hidden, mask).tolist() == [[3, 5]]
    assert POOLINGS["first"](hidden, ~mask).tolist() == [[9, 9]], "padded on the left"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["BertForMaskedLM", "MPNetForMaskedLM"])
def test_padding_does_not_change_what_is_pooled(name, pooling, tmp_path):
    """By our encoder (BERT) and by transformers' (MPNet)."""
    encoder = PretrainedEncoder(str(foreign.build(name, tmp_path / "m")))
    torch.manual_seed(0)
    model = encoder.classifier(TASKS["mnli"], pooling=pooling).eval()
    ids = torch.randint(5, 60, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    with torch.no_grad():
        padded = model(Batch(ids.masked_fill(~mask, 0), mask))
        torch.testing.assert_close(model(Batch(ids[1:, :6])), padded[1:], rtol=0, atol=1e-5)


def test_a_result_names_its_pooling_and_is_not_ranked(model, glue, tmp_path):
    data, config = load_task(TASKS["rte"], glue), replace(QUICK, pooling="mean")
    result = finetune(
        PretrainedEncoder(str(model)), data, config, learning_rate=1e-3, seed=1, out=tmp_path
    )
    settings = read_run(run_directory(tmp_path, result.settings)).settings
    assert settings.pooling == "mean"
    assert "pooling mean, not none" in departures(protocol_named("paper"), [settings])


def test_outputs_that_cannot_be_pooled_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        FinetuneConfig(pooling="meen")
    t5 = PretrainedEncoder(str(foreign.build("T5ForConditionalGeneration", tmp_path / "t5")))
    with pytest.raises(ConfigError, match="needs an encoder"):
        t5.classifier(TASKS["rte"], pooling="mean")
