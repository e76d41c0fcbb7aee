"""An export loads with transformers' Auto classes alone and gives the trained model's outputs."""

import json
import random
from pathlib import Path

import httpx
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers

from smallbench.batch import Batch
from smallbench.config import override_all
from smallbench.data.config import PrepareConfig
from smallbench.data.prepare import prepare
from smallbench.data.tokenizer import AWKWARD_TEXTS, Tokenizer
from smallbench.errors import ConfigError, DataError, SmallbenchError, UnavailableError
from smallbench.export import huggingface
from smallbench.export.card import used_sentence
from smallbench.export.huggingface import as_export, export, load_model, load_run
from smallbench.export.upload import UNFINISHED
from smallbench.pretraining.pretrain import pretrain
from smallbench.storage.local import LocalStorage
from smallbench.tracking.jsonl import read_metrics
from smallbench.train.build import vocabulary_of
from tests.pretraining.test_recipes import small

pytestmark = pytest.mark.usefixtures("quick_runs")

RUNS = {
    "bert-factorised": ("bert", {"model.embedding_size": 16}),
    "bert-plain": ("bert", {"model.embedding_size": 32}),
    "roberta": ("roberta", {}),
    "deberta": ("deberta", {}),
    "electra": ("electra", {}),
    "electra-disentangled": (
        "electra",
        {"objective.embedding_sharing": "gradient_disentangled"},
    ),
    "electra-deberta": ("electra-deberta", {}),
}


def pretrained(corpus, run_dir, name):
    family, values = RUNS[name]
    config = override_all(small(family, train__max_steps=3), values)
    pretrain(config, data=corpus, run_dir=run_dir)
    return run_dir


@pytest.fixture(scope="module", params=["bert-factorised", "bert-plain"])
def run_dir(request, corpus, tmp_path_factory):
    return pretrained(corpus, tmp_path_factory.mktemp("run"), request.param)


@pytest.mark.parametrize("name", RUNS)
def test_transformers_loads_it_and_outputs_are_equal(name, corpus, tmp_path):
    import transformers

    run_dir, out = pretrained(corpus, tmp_path / "run", name), tmp_path / "export"
    assert export(run_dir, out).difference < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    (class_name,) = config["architectures"]
    theirs = getattr(transformers, class_name).from_pretrained(out).eval()
    assert theirs.config.vocab_size == len(tokenizer) == 300
    assert theirs.config.pad_token_id == tokenizer.pad_token_id
    inputs = tokenizer(["some text", "a somewhat longer text"], padding=True, return_tensors="pt")
    _, run_config, checkpoint = load_run(run_dir)
    vocabulary = vocabulary_of(Tokenizer.load(run_dir / "tokenizer"))
    ours, head = load_model(run_config, checkpoint, vocabulary)
    mask = inputs["attention_mask"].bool()
    types = inputs["token_type_ids"] if run_config.model.type_vocab_size > 1 else None
    with torch.no_grad():
        hidden = ours(Batch(inputs["input_ids"], mask, types))
        output = theirs(input_ids=inputs["input_ids"], attention_mask=mask, token_type_ids=types)
    if class_name == "DebertaModel":
        actual, expected = hidden, output.last_hidden_state
    elif head == "replaced":
        actual, expected = ours.predict_replaced(hidden), output.logits
    else:
        actual, expected = ours.predict_tokens(hidden)[..., :300], output.logits
    torch.testing.assert_close(expected[mask], actual[mask], rtol=0, atol=1e-5)
    auto = transformers.AutoModelForSequenceClassification
    classifier, report = auto.from_pretrained(out, num_labels=3, output_loading_info=True)
    assert all("classifier" in k or "pooler" in k for k in report["missing_keys"]), report
    assert classifier(input_ids=inputs["input_ids"], attention_mask=mask).logits.shape == (2, 3)


def other_tokenizer(path):
    """One whose normalizer BERT's class would not rebuild, and without a post-processor."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*specials, *letters, *(f"##{letter}" for letter in letters), "the", "and"]
    model = models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(specials)
    backend.save(str(path))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    other_tokenizer(folder / "tokenizer.json")
    words = ["The", "State", "of", "the", "art,", "and", "THE", "Art."]
    source = random.Random(0)
    texts = [" ".join(source.choices(words, k=60)) + f" {i}" for i in range(150)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    prepare(
        PrepareConfig(
            corpus=str(folder / "a.txt"),
            tokenizer=str(folder / "tokenizer.json"),
            sequence_length=32,
            eval_fraction=0.1,
            min_characters=50,
        ),
        out=folder / "corpus",
        workers=1,
    )
    return pretrained(folder / "corpus", folder / "run", "bert-plain")


def test_the_exported_tokenizer_is_the_one_of_the_corpus(other_run, tmp_path):
    from transformers import AutoTokenizer

    export(other_run, tmp_path / "export")
    ours = Tokenizer.load(other_run / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export")
    for text in ("The State of the ART", "café — NAÏVE"):
        [ids] = ours.encode_batch([text])
        assert theirs(text)["input_ids"] == [ours.cls_id, *ids.tolist(), ours.sep_id]
    marker = json.loads((tmp_path / "export" / "smallbench.json").read_text())
    held_out = json.loads((other_run / "tokenizer" / "held_out.json").read_text())
    assert marker["tokenizer_texts_compared"] == len(held_out) + len(AWKWARD_TEXTS)
    assert held_out
    assert not (tmp_path / "export" / "held_out.json").exists(), "text of the corpus stays at home"


@pytest.mark.parametrize("where", ["held out", "awkward"])
def test_an_export_with_another_tokenizer_fails_and_leaves_nothing(
    other_run, tmp_path, monkeypatch, where
):
    real = Tokenizer.save

    def save_another(self, directory, **settings):
        real(self, directory, **settings)
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text())
        if where == "held out":
            content["model"]["vocab"].pop("the")
        else:
            content["model"]["max_input_chars_per_word"] = 20
        path.write_text(json.dumps(content))

    monkeypatch.setattr(Tokenizer, "save", save_another)
    with pytest.raises(SmallbenchError, match=r"tokenizer differs from the run's.*nothing was"):
        export(other_run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


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


def test_the_card_lists_resources_and_omits_unknown_ones():
    usage = {
        "gpu_active_seconds": 7200.0,
        "energy_kwh": 0.5,
        "energy_method": "nvml + tdp",
        "cost": 1.25,
    }
    assert used_sentence({"train_flops": 2.5e15, "usage": usage}) == (
        "2.5e+15 floating-point operations, 2.00 GPU hours, 0.5 kWh (by nvml + tdp), a cost of 1.25"
    )
    nothing = dict.fromkeys(usage)
    assert used_sentence({"train_flops": 2.5e15, "usage": nothing}).endswith("operations")


def test_the_cards_losses_can_be_compared_with_their_entropies(corpus, tmp_path):
    run_dir = pretrained(corpus, tmp_path / "run", "electra")
    export(run_dir, tmp_path / "export")
    evaluation = [r for r in read_metrics(run_dir / "metrics.jsonl") if r["event"] == "eval"][-1]
    (line,) = (
        line
        for line in (tmp_path / "export" / "README.md").read_text().splitlines()
        if line.startswith("| held-out")
    )
    assert f"generator {evaluation['generator_loss']:.3f} nats" in line
    assert f"discriminator {evaluation['discriminator_loss']:.3f} nats" in line
    assert f"{evaluation['loss']:.3f}" not in line, "a weighted sum, which nothing compares with"


def test_a_run_is_lent_as_an_export_and_anything_else_as_it_is(run_dir, tmp_path):
    with as_export(str(run_dir)) as lent:
        assert (Path(lent) / "config.json").is_file()
    assert not Path(lent).exists()
    with as_export("some/model") as lent:
        assert lent == "some/model"


def test_a_second_export_replaces_the_first_and_nothing_else(run_dir, tmp_path):
    export(run_dir, tmp_path / "export")
    export(run_dir, tmp_path / "export")
    (tmp_path / "export" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="which no export wrote"):
        export(run_dir, tmp_path / "export")
    assert (tmp_path / "export" / "config.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not an earlier export"):
        export(run_dir, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_different_outputs_leave_nothing_behind(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "output_difference", lambda *_: 0.5)
    with pytest.raises(SmallbenchError, match="differ"):
        export(run_dir, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_active_run_is_only_read(run_dir, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    export(run_dir, tmp_path / "export")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_an_invalid_repository_name_is_refused_before_any_work(run_dir, tmp_path):
    with pytest.raises(ConfigError, match="expected ORG/NAME"):
        export(run_dir, tmp_path / "export", push="a/b/c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", [httpx.ConnectError("no route"), OSError("no route")])
def test_a_hub_that_does_not_answer_is_unavailable(problem, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise problem

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(
        UnavailableError, match=r"reached \(no route\); the export is complete in e"
    ):
        huggingface._push(tmp_path, "a/b", complete_in="e")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run"):
        export(tmp_path, tmp_path / "out")


# A storage as --out and --model


def content(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_an_export_in_a_storage_is_the_local_one_and_is_lent_as_such(run_dir, tmp_path):
    url = f"file://{tmp_path}/bucket/export"
    assert export(run_dir, url) == export(run_dir, tmp_path / "here")
    assert content(tmp_path / "bucket" / "export") == content(tmp_path / "here")
    with as_export(url) as lent:
        assert content(lent) == content(tmp_path / "here")
    assert not Path(lent).exists()


def test_in_a_storage_too_an_export_replaces_an_export_and_nothing_else(run_dir, tmp_path):
    objects = tmp_path / "bucket"
    export(run_dir, f"file://{objects}")
    (objects / "config.json").write_text("old")
    export(run_dir, f"file://{objects}")
    assert (objects / "config.json").read_text() != "old"
    (objects / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex.*which no export wrote"):
        export(run_dir, f"file://{objects}")
    assert (objects / "config.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(ConfigError, match="is not an earlier export"):
        export(run_dir, f"file://{tmp_path}/mine")
    assert content(tmp_path / "mine") == {"config.json": b"mine"}


@pytest.mark.parametrize("is_first", [True, False])
def test_half_an_export_is_not_lent_and_the_same_call_completes_it(
    is_first, run_dir, tmp_path, monkeypatch
):
    url, objects = f"file://{tmp_path}/bucket", tmp_path / "bucket"
    if not is_first:
        export(run_dir, url)
    real, sent = LocalStorage.upload, []

    def fail_half_way(self, path, key):
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(key)
        real(self, path, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "upload", fail_half_way)
        with pytest.raises(KeyboardInterrupt):
            export(run_dir, url)
    assert not (objects / "smallbench.json").exists()
    with pytest.raises(DataError, match="an export that is not complete"), as_export(url):
        pass
    export(run_dir, url)
    assert not (objects / UNFINISHED).exists()
    export(run_dir, tmp_path / "here")
    assert content(objects) == content(tmp_path / "here")


def test_the_marker_is_sent_last(run_dir, tmp_path, monkeypatch):
    real, sent = LocalStorage.upload, []
    monkeypatch.setattr(LocalStorage, "upload", lambda *args: (sent.append(args[2]), real(*args)))
    export(run_dir, f"file://{tmp_path}/bucket")
    assert sent[-1] == "smallbench.json"
    assert "model.safetensors" in sent


def test_a_url_without_an_export_is_not_a_model(tmp_path):
    with pytest.raises(DataError, match="holds no export"), as_export(f"file://{tmp_path}/nothing"):
        pass


def test_an_export_goes_through_a_bucket(run_dir, tmp_path, moto_bucket):
    url = f"{moto_bucket.url}/models/tiny"
    for _ in range(2):
        export(run_dir, url, storage=moto_bucket.config)
    export(run_dir, tmp_path / "here")
    with as_export(url, moto_bucket.config) as lent:
        assert content(lent) == content(tmp_path / "here")
