"""A measurement is a plan's only if it is of the same recipe, on the same card."""

import json

import pytest

from smallbench.config import override_all, to_dict
from smallbench.errors import ConfigError, DataError
from smallbench.gpus import gpu_of
from smallbench.planning.measured import measured_tokens_per_second
from smallbench.planning.planner import Decision
from smallbench.recipes import RECIPES
from smallbench.train.engine import EngineChoice

V100 = gpu_of("v100-16gb")
BERT = RECIPES["bert-small"]()
RATES = [("train", None), ("train", 100.0), ("eval", 1.0), ("train", 300.0), ("train", 200.0)]


def write_run(folder, *, config=BERT, rates=RATES, **attempt):
    """metrics.jsonl with run.json beside it."""
    lines = [json.dumps({"event": event, "tokens_per_second": rate}) for event, rate in rates]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    first = {"number": 1, "device": "Tesla V100-SXM2-16GB", "precision": "fp16", "num_devices": 1}
    record = {
        "schema_version": 1, "run_id": "a", "data": "corpus", "config": to_dict(config),
        "corpus": {}, "plugins": [], "attempts": [first | attempt],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder / "metrics.jsonl"


PLAIN = Decision(EngineChoice(), False, 128)


def rate_of(path, config=BERT, gpu=V100, decision=PLAIN):
    recipe = RECIPES[config.recipe]()
    return measured_tokens_per_second(path, config, gpu, "fp16", decision=decision, recipe=recipe)


def test_a_run_of_the_recipe_on_the_card_gives_its_median(tmp_path):
    assert rate_of(write_run(tmp_path)) == 200.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "x86_64"}, "was measured on x86_64, not on v100-16gb"),
        ({"device": "Tesla T4"}, "was measured on Tesla T4"),
        ({"precision": "fp32"}, "in fp32, but this plan is for fp16"),
        ({"num_devices": 2}, "on 2 devices"),
        ({"config": RECIPES["bert-tiny"]()}, "with recipe bert-tiny, not with bert-small"),
        (
            {"config": override_all(BERT, {"model.hidden_size": 512, "train.max_steps": 9})},
            "with model.hidden_size=512, but this plan has 256",
        ),
    ],
)
def test_a_run_of_something_else_is_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        rate_of(write_run(tmp_path, **change))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "run.json").unlink(),
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "run.json").write_text('{"config": {}, "attempts": []}'),
        lambda folder: (folder / "run.json").write_text(
            '{"schema_version": 1, "run_id": "a", "data": "d", "config": {}, "corpus": {}, '
            '"plugins": [], "attempts": []}'
        ),
        lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "metrics.jsonl").write_text("no JSON\n[1]\n"),
        lambda folder: (folder / "metrics.jsonl").write_text('{"benchmark": "gpu"}\n'),
        lambda folder: write_run(folder, rates=[("train", "fast")]),
        lambda folder: write_run(folder, rates=[("train", 0.0)]),
    ],
)
def test_a_file_without_a_measurement_is_one_sentence(damage, tmp_path):
    path = write_run(tmp_path)
    damage(tmp_path)
    with pytest.raises((DataError, ConfigError), match=r"run\.json|metrics\.jsonl"):
        rate_of(path)


ROW = {
    "benchmark": "gpu", "device": "Tesla V100-SXM2-16GB", "precision": "fp16",
    "recipe": "bert-small", "program": "ours", "compile": False, "batch_size": 128,
}  # fmt: skip


def test_the_benchmarks_row_with_the_planned_configuration_is_used(tmp_path):
    rows = [
        ROW | {"tokens_per_second": 7},
        ROW | {"tokens_per_second": 9, "compile": True},
        ROW | {"tokens_per_second": 99, "batch_size": 512},
        ROW | {"tokens_per_second": 2, "program": "theirs"},
    ]
    path = tmp_path / "gpu.txt"
    path.write_text("| system | tokens/s |\n" + "\n".join(map(json.dumps, rows)))
    assert rate_of(path) == 7.0
    assert rate_of(path, decision=Decision(EngineChoice(), False, 512)) == 99.0
    said = "with 64 rows eager; it has 128 rows eager, 128 rows compiled, 512 rows eager"
    with pytest.raises(ConfigError, match=said):
        rate_of(path, decision=Decision(EngineChoice(), False, 64))
    with pytest.raises(ConfigError, match="with 128 rows eager with recomputation"):
        rate_of(path, decision=Decision(EngineChoice(), True, 128))
    with pytest.raises(DataError, match="no measurement of roberta-small"):
        rate_of(path, RECIPES["roberta-small"]())
    with pytest.raises(ConfigError, match="not on t4-16gb"):
        rate_of(path, gpu=gpu_of("t4-16gb"))
    with pytest.raises(ConfigError, match=r"model.hidden_size=256, but this plan has 512"):
        rate_of(path, override_all(BERT, {"model.hidden_size": 512}))
