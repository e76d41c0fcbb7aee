"""What is exported loads with transformers' Auto classes alone and computes what was trained."""

import json

import pytest
import torch

from smallbench.batch import Batch
from smallbench.config import override_all
from smallbench.errors import ConfigError, DataError, SmallbenchError
from smallbench.export import huggingface
from smallbench.export.huggingface import export, load_run
from smallbench.models.bert import Bert
from smallbench.recipes import RECIPES
from smallbench.train.pretrain import pretrain
from tests.train.test_pretrain import VALUES


@pytest.fixture(scope="module", params=[16, 32], ids=["factorised", "plain"])
def run_dir(request, corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    values = {**VALUES, "train.max_steps": 3, "model.embedding_size": request.param}
    pretrain(override_all(RECIPES["bert-tiny"](), values), data=corpus, run_dir=run_dir)
    return run_dir


@torch.no_grad()
def test_auto_classes_load_it_and_logits_are_equal(run_dir, tmp_path):
    from transformers import (
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    out = tmp_path / "export"
    assert export(run_dir, out) < 1e-5
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForMaskedLM.from_pretrained(out).eval()
    assert model.config.vocab_size == len(tokenizer) == 300
    assert model.config.pad_token_id == tokenizer.pad_token_id
    inputs = tokenizer(["some text", "a somewhat longer text"], padding=True, return_tensors="pt")
    _, config, checkpoint = load_run(run_dir)
    ours = Bert(config.model).eval()
    state = checkpoint.module_state()
    ours.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    mask = inputs["attention_mask"].bool()
    batch = Batch(inputs["input_ids"], mask, inputs["token_type_ids"])
    logits = ours.predict_tokens(ours(batch))[..., :300]
    torch.testing.assert_close(model(**inputs).logits[mask], logits[mask], rtol=0, atol=1e-5)
    classifier = AutoModelForSequenceClassification.from_pretrained(out, num_labels=3)
    assert classifier(**inputs).logits.shape == (2, 3)


def test_the_card_and_the_marker_say_where_it_came_from(run_dir, tmp_path):
    export(run_dir, tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    marker = json.loads((tmp_path / "export" / "smallbench.json").read_text())
    run = json.loads((run_dir / "run.json").read_text())
    assert marker["run_id"] == run["run_id"]
    assert marker["step"] == 3
    assert "| recipe | `bert-tiny` |" in card
    factorised = run["config"]["model"]["embedding_size"] < 32
    assert ("`Electra*`" in card) == factorised
    assert "library_name: transformers" in card.split("---")[1]


def test_a_second_export_replaces_the_first_and_nothing_else(run_dir, tmp_path):
    export(run_dir, tmp_path / "export")
    export(run_dir, tmp_path / "export")
    (tmp_path / "export" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="which no export wrote"):
        export(run_dir, tmp_path / "export")
    assert (tmp_path / "export" / "config.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds no earlier export"):
        export(run_dir, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_different_logits_leave_nothing_behind(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "logit_difference", lambda *_: 0.5)
    with pytest.raises(SmallbenchError, match="differ"):
        export(run_dir, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_is_only_read(run_dir, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    export(run_dir, tmp_path / "export")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_a_name_that_is_no_repository_is_refused_before_any_work(run_dir, tmp_path):
    with pytest.raises(ConfigError, match="no ORG/NAME"):
        export(run_dir, tmp_path / "export", push="a/b/c")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        export(tmp_path, tmp_path / "out")
