"""Fine-tuning: real runs of a tiny encoder on sample tasks, and the batches they are made of."""

import numpy as np
import pytest
import torch

from smallbench.errors import ConfigError, DataError, InterruptedRunError, UnavailableError
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.features import EpochBatches, Features, epoch_batches, tokenize
from smallbench.glue.finetune import finetune
from smallbench.glue.pretrained import PretrainedEncoder
from smallbench.glue.results import run_directory
from smallbench.glue.task_data import load_task
from smallbench.glue.tasks import TASKS
from smallbench.objectives.classification import Classification
from smallbench.stop import Stop
from smallbench.train.engine import TorchEngine
from tests.glue.runs import check_run

QUICK = FinetuneConfig(epochs=1, max_train_examples=64, precision="fp32")
RUN = {"learning_rate": 1e-3, "seed": 1}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_and_its_predictions_give_its_metrics(name, model, glue, tmp_path):
    data = load_task(TASKS[name], glue)
    result = finetune(PretrainedEncoder(str(model)), data, QUICK, **RUN, out=tmp_path)
    directory = run_directory(tmp_path, result.settings)
    assert check_run(directory, data) == result
    assert result.settings.is_sample
    assert {p.stem for p in directory.glob("*.tsv")} == {s for s in data.splits if s != "train"}


def test_the_fingerprint_is_the_checkpoints_and_not_the_poolers(model):
    """transformers draws a pooler at random where a checkpoint has none."""
    first = PretrainedEncoder(str(model))
    torch.rand(7)
    assert PretrainedEncoder(str(model)).sha256 == first.sha256
    theirs = first.transformers_classifier(TASKS["cola"])
    with_pooler = sum(p.numel() for p in theirs.base_model.parameters())
    assert first.num_parameters == with_pooler - 32 * 33


def test_more_tokens_than_positions_are_refused(model, glue, tmp_path):
    config = FinetuneConfig(max_length=129)
    with pytest.raises(ConfigError, match="--max_length=128"):
        finetune(
            PretrainedEncoder(str(model)),
            load_task(TASKS["rte"], glue),
            config,
            **RUN,
            out=tmp_path,
        )


@pytest.mark.parametrize("name", ["epochs", "batch_size", "max_train_examples", "clip_norm"])
def test_values_out_of_range_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=name):
        FinetuneConfig(**{name: 0})


def test_equal_seeds_give_equal_predictions_and_others_differ(model, glue, tmp_path):
    data = load_task(TASKS["stsb"], glue)
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        again = {**RUN, "seed": seed}
        result = finetune(PretrainedEncoder(str(model)), data, QUICK, **again, out=tmp_path / name)
        path = run_directory(tmp_path / name, result.settings) / "dev.tsv"
        runs.append(path.read_bytes())
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_an_interrupted_run_stores_nothing(model, glue, tmp_path):
    data = load_task(TASKS["rte"], glue)
    with pytest.raises(InterruptedRunError, match="RTE, seed 1"):
        finetune(
            PretrainedEncoder(str(model)), data, QUICK, **RUN, out=tmp_path, stop=Stop(lambda: True)
        )
    assert not list(tmp_path.rglob("*.tsv"))


@pytest.mark.parametrize(
    ("owner", "name"),
    [(TorchEngine, "forward"), (TorchEngine, "step"), (Classification, "predict")],
)
def test_exhausted_memory_is_one_sentence_and_stores_nothing(
    owner, name, model, glue, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore text.")

    monkeypatch.setattr(owner, name, full)
    data = load_task(TASKS["rte"], glue)
    with pytest.raises(UnavailableError, match=r"Tried to allocate 2 GiB\.\); set .* --batch_size"):
        finetune(PretrainedEncoder(str(model)), data, QUICK, **RUN, out=tmp_path)
    assert not list(tmp_path.rglob("*.tsv"))


def test_a_random_encoder_is_another_model_for_each_seed(model):
    task = TASKS["cola"]
    encoder = PretrainedEncoder(str(model), random_init=True)
    trained = PretrainedEncoder(str(model))
    key = "bert.embeddings.word_embeddings.weight"
    weights = []
    for made in (encoder, encoder, trained, trained):
        torch.manual_seed(len(weights))
        weights.append(made.transformers_classifier(task).state_dict()[key])
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])


def test_labels_are_named_in_the_classifier(model):
    config = PretrainedEncoder(str(model)).transformers_classifier(TASKS["mnli"]).config
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert (
        PretrainedEncoder(str(model)).transformers_classifier(TASKS["stsb"]).config.num_labels == 1
    )


def test_a_fine_tuned_model_is_refused(model, tmp_path):
    torch.manual_seed(0)
    PretrainedEncoder(str(model)).transformers_classifier(TASKS["mnli"]).save_pretrained(tmp_path)
    PretrainedEncoder(str(model)).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="already fine-tuned"):
        PretrainedEncoder(str(tmp_path))


def test_a_folder_without_a_model_is_refused_with_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is not a directory"):
        PretrainedEncoder(str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"nor a run \(run\.json is missing\)"):
        PretrainedEncoder(str(tmp_path))


def test_every_epoch_has_every_row_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 128, size=5000)
    epochs = [epoch_batches(lengths, batch_size=32, seed=1, epoch=e) for e in range(2)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(5000))
        assert sorted(map(len, batches)) == [8, *[32] * 156]
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        assert padded / lengths.sum() < 1.1, "without buckets it is about 1.9"
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_batches(lengths, batch_size=32, seed=1, epoch=0)


def features(*, pad_left=False):
    ids = [[2, 7, 3], [2, 7, 8, 9, 7, 8, 9, 7, 8, 3], [2, 3]]
    types = [[0] * len(row) for row in ids]
    return Features(ids, types, np.array([1, 0, 1]), pad_id=0, pad_left=pad_left, max_length=128)


def test_rows_are_padded_to_the_longest_on_the_tokenizers_side():
    batch = features().batch([0, 2])
    assert batch.input_ids.tolist() == [[2, 7, 3, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [3, 2]
    assert batch.labels.tolist() == [1, 1]
    left = features(pad_left=True).batch([0])
    assert left.input_ids.tolist() == [[0, 0, 0, 0, 0, 2, 7, 3]]
    assert features().batch([1]).input_ids.shape == (1, 16)


def test_reading_a_position_equals_iterating_to_it():
    def source():
        return EpochBatches(features(), batch_size=2, epochs=3, seed=5)

    assert source().num_steps == 6
    iterated, position, one = [], 0, source()
    for _ in range(6):
        batches, position = one.read(position)
        iterated.append(batches[0].input_ids)
    for position in (5, 0, 3, 2):
        assert torch.equal(source().read(position)[0][0].input_ids, iterated[position])


def test_padding_does_not_change_predictions(model, glue):
    """Dynamic padding is free only if the mask does its work."""
    encoder = PretrainedEncoder(str(model))
    dev = load_task(TASKS["rte"], glue).splits["dev"]
    rows = tokenize(dev, encoder.tokenizer, max_length=128, with_types=True)
    network = encoder.classifier(TASKS["rte"]).eval()
    with torch.no_grad():
        batch = rows.batch(range(4))
        together = network(batch)
        for row in range(4):
            alone = network(rows.batch([row]))
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
