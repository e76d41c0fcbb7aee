"""A plan agrees with what it plans: its counts, its choices, and what it says."""

import dataclasses
import json
from functools import cache

import pytest
import torch

from smallbench.config import override_all
from smallbench.errors import ConfigError, UnavailableError
from smallbench.gpus import GIB, gpu_of
from smallbench.planning.compare import ComparePlan
from smallbench.planning.gpu_plan import make_plan
from smallbench.planning.memory_trace import stand_in_objective
from smallbench.planning.planner import (
    CHOICES,
    MAX_TRACED_TOKENS,
    Planner,
    choices_of,
    choose,
    decide,
    rows_to_plan,
    smaller,
)
from smallbench.planning.table import as_table, duration, memory_table, unit_of
from smallbench.recipes import RECIPES
from smallbench.train.engine import EngineChoice
from smallbench.train.memory import PeakMeter
from smallbench.train.trainer import Progress

V100 = gpu_of("v100-16gb")


def recipe_of(name, **values):
    config = RECIPES[name]()
    if config.model.vocab_size is None:
        values = {"model.vocab_size": 512, **values}
    return override_all(config, {key.replace("__", "."): v for key, v in values.items()})


@cache
def tiny_planner(device_type="cuda", family="bert"):
    config = recipe_of(f"{family}-tiny", model__hidden_dropout_prob=0.1)
    precision = "fp16" if device_type == "cuda" else "bf16"
    return Planner(config, device_type=device_type, precision=precision)


@pytest.mark.parametrize("name", RECIPES)
def test_counts_are_the_models_own(name):
    config = recipe_of(name)
    with torch.device("meta"):
        objective = stand_in_objective(config)
    planner = Planner(config, device_type="cuda", precision="fp16")
    assert planner.num_parameters == sum(p.numel() for p in objective.parameters())
    batch = planner._tracer(False).sample(4)
    tokens = 4 * config.sequence_length
    assert planner.flops_per_token() == objective.train_flops(batch) / tokens
    looked_up = sum(
        p.numel() for n, p in objective.named_parameters() if n.endswith((
            "tokens.weight", "positions.weight", "segments.weight", "relative_positions.weight"
        ))
    )  # fmt: skip
    assert planner.num_embedding_parameters == looked_up


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("deberta", "electra"))]
)
@pytest.mark.parametrize("device_type", [pytest.param("cpu", marks=pytest.mark.slow), "cuda"])
def test_memory_is_monotonic(family, device_type):
    planner = tiny_planner(device_type, family)
    for choice in CHOICES:
        peaks = [planner.memory(choice, rows).peak for rows in (4, 32)]
        assert peaks == sorted(peaks)
        assert peaks[0] < peaks[-1]
    for engine in {engine for engine, _ in CHOICES}:
        plain, recomputed = (planner.memory((engine, r), 32) for r in (False, True))
        assert recomputed.activations < plain.activations
        assert recomputed.peak <= plain.peak
    for recompute in (False, True):
        plain = planner.memory((EngineChoice(), recompute), 32)
        for offload in ("optimizer", "parameters"):
            away = planner.memory((EngineChoice("deepspeed", offload), recompute), 32)
            assert away.fixed < plain.fixed
            assert away.host > away.weights
            assert plain.host == 0


def test_accumulated_gradients_take_their_place():
    """With several micro-batches the gradients of the whole model are there from the second on."""
    whole = recipe_of("bert-tiny")
    parts = override_all(whole, {"train.micro_batch_size": 8})
    peaks = [
        Planner(config, device_type="cuda", precision="fp16").memory(CHOICES[0], 8)
        for config in (override_all(whole, {"train.global_batch_size": 8}), parts)
    ]
    gained = peaks[1].peak - peaks[0].peak
    assert 0 < gained <= peaks[0].gradients


def test_the_fastest_way_that_fits_is_taken():
    planner = tiny_planner()
    rows = planner.config.train.rows_per_forward
    ways = [planner.memory(choice, rows) for choice in CHOICES]
    choices = choices_of(planner.config, may_recompute=True)
    assert choices == list(CHOICES)
    plain, recomputed = CHOICES[0], CHOICES[1]

    def decided(limit):
        found = decide(planner, choices, limit)
        return (found.engine, found.checkpoint_activations), found.num_rows

    assert decided(ways[0].peak) == (plain, rows)
    # Half the rows still fill a GPU, so they come before recomputation.
    assert decided(ways[0].peak - 1) == (plain, rows // 2)
    eight = planner.memory(plain, 8).peak
    assert decided(eight) == (plain, 8)
    assert decided(eight - 1)[0] == recomputed
    assert decide(planner, choices, 1000) is None


@pytest.mark.parametrize(
    ("values", "engine"),
    [
        ({}, EngineChoice("torch", "none")),
        ({"train__engine": "deepspeed"}, EngineChoice("deepspeed", "none")),
        ({"train__offload": "optimizer"}, EngineChoice("deepspeed", "optimizer")),
        ({"train__offload": "parameters"}, EngineChoice("deepspeed", "parameters")),
        ({"train__offload": "none"}, EngineChoice("torch", "none")),
        ({"train__zero_stage": 2}, EngineChoice("deepspeed", "none", 2)),
    ],
)
def test_values_of_the_configuration_are_kept(values, engine):
    config = recipe_of("bert-tiny", **values)
    decision = choose(config, device_type="cuda", precision="fp16", memory_bytes=16 * GIB)
    assert decision.engine == engine
    assert decision.num_rows == config.train.rows_per_forward
    assert not decision.checkpoint_activations
    # A CPU's memory is the host's: nothing is gained, and nothing is traced.
    on_cpu = choose(config, device_type="cpu", precision="bf16", memory_bytes=1)
    assert on_cpu.engine == engine


def test_a_full_disk_is_one_sentence():
    config = recipe_of("bert-tiny", train__offload="none")
    with pytest.raises(UnavailableError, match=r"one row at a time takes .* GiB of the device"):
        choose(config, device_type="cuda", precision="fp16", memory_bytes=10_000_000)


@pytest.mark.slow
def test_one_and_a_half_billion_fit_16_gb_with_offload_and_not_without():
    config = recipe_of("bert-1.5b")
    decision = choose(config, device_type="cuda", precision="fp16", memory_bytes=16 * GIB)
    assert decision.engine == EngineChoice("deepspeed", "optimizer")
    assert decision.checkpoint_activations
    assert decision.num_rows == config.train.micro_batch_size
    without = override_all(config, {"train.offload": "none"})
    with pytest.raises(UnavailableError):
        choose(without, device_type="cuda", precision="fp16", memory_bytes=16 * GIB)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base", "bert-large", "deberta-xlarge"])
def test_the_large_recipes_are_written_as_they_fit_16_gb(name):
    config = RECIPES[name]()
    decision = choose(config, device_type="cuda", precision="fp16", memory_bytes=V100.memory_bytes)
    assert decision.num_rows == config.train.micro_batch_size
    assert decision.checkpoint_activations == config.train.checkpoint_activations
    assert decision.engine == EngineChoice("torch", "none")


def test_a_micro_batch_always_divides_the_global_batch():
    rows, seen = 96, []
    while rows is not None:
        seen.append(rows)
        rows = smaller(rows)
    assert seen[0] == 96
    assert seen[-1] == 1
    assert all(96 % n == 0 for n in seen)
    assert [smaller(n) for n in (1, 2, 9, 15, 10**8 + 7)] == [None, 1, 3, 5, 1]


@cache
def tiny_plan():
    return make_plan(recipe_of("bert-tiny"), V100, hours=1.0, price_per_hour=2.0)


def test_a_plan_that_compares_no_ways_says_the_same_of_its_choice():
    short = make_plan(recipe_of("bert-tiny"), V100, hours=1.0, price_per_hour=2.0, compares=False)
    assert short == dataclasses.replace(tiny_plan(), ways=(), largest_rows=())
    assert short.chosen == tiny_plan().ways[0]


def test_a_step_is_traced_once_whatever_the_budget(monkeypatch):
    config = recipe_of("bert-tiny")
    known = Planner(config, device_type="cuda", precision="fp16").memory(CHOICES[0], 32)
    monkeypatch.delattr("smallbench.planning.memory_trace.StepTracer._tracing")
    values = {"recipe": "another", "train.max_flops": 1e15, "train.seed": 7, "train.max_steps": 9}
    changed = override_all(config, {**values, "schedule.warmup_fraction": 0.5})
    planner = Planner(changed, device_type="cuda", precision="fp16")
    assert planner.memory(CHOICES[0], 32) == known
    with pytest.raises(AttributeError, match="_tracing"):
        planner.memory(CHOICES[0], 16)


def test_time_energy_and_price_follow_from_the_speed():
    plan = tiny_plan()
    for end, rate in enumerate(plan.speed.tokens_per_second):
        assert plan.speed.mfu[end] == pytest.approx(rate * plan.flops_per_token / 125e12)
        assert plan.whole.hours[end] == plan.whole.tokens / rate / 3600
        assert plan.budget.kwh[end] == pytest.approx(0.3 * plan.budget.hours[end])  # 300 W
        assert plan.budget.price[end] == 2.0 * plan.budget.hours[end]
    assert plan.whole.tokens == 5_200 * 32 * 128
    fast, slow = plan.budget.hours
    assert slow == pytest.approx(1.0, rel=1e-3)
    assert fast < slow <= 1.0


def test_a_budget_of_flops_is_planned_by_its_own_steps():
    config = recipe_of("bert-tiny")
    planner = Planner(config, device_type="cpu", precision="fp32")
    step = planner.flops_per_token() * config.train.global_batch_size * config.sequence_length

    def num_steps(**values):
        changed = override_all(config, {key.replace("__", "."): v for key, v in values.items()})
        return Planner(changed, device_type="cpu", precision="fp32").num_steps()

    most = config.train.max_steps
    assert num_steps() == most
    assert num_steps(train__max_flops=7.5 * step) == 8
    assert num_steps(train__max_flops=2 * most * step) == most
    along = {"schedule__along": "flops"}
    assert num_steps(train__max_flops=2.0 * most * step, **along) in {2 * most, 2 * most + 1}


def test_a_step_takes_as_long_as_the_card_or_the_launches_and_the_offload():
    step = tiny_plan().speed.step
    for end in (0, 1):
        on_card = step.matrix_products[end] + step.other_kernels[end]
        assert step.seconds[end] == max(on_card, step.launches[end]) + step.host[end]
        assert step.host[end] == 0
    planner, rows = tiny_planner(), 32
    plain, recomputed, offloaded, _, away, _ = (planner.time(c, rows, V100) for c in CHOICES)
    assert recomputed.matrix_products > plain.matrix_products
    assert 0 == plain.host[0] < offloaded.host[0] < away.host[0]
    parts = planner.time(CHOICES[0], 8, V100)
    assert parts.num_kernels > 3 * plain.num_kernels
    # A faster card is not slower, and the same kernels are launched.
    better = planner.time(CHOICES[0], rows, gpu_of("h100-80gb"))
    assert better.num_kernels == plain.num_kernels
    assert all(a <= b for a, b in zip(better.seconds, plain.seconds, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("bert-small", 0.13, 0.16), ("electra-deberta-small", 0.10, 0.12)],
)
def test_estimates_contain_the_values_counted_by_hand_for_a_v100(name, low, high):
    slow, fast = sorted(make_plan(recipe_of(name), V100).speed.mfu)
    assert slow < low < high < fast


def test_the_table_is_aligned_and_marks_the_choice():
    plan = tiny_plan()
    head, *rows = memory_table(plan)
    assert len({len(line) for line in (head, *rows)}) == 1
    assert [row.startswith("> ") for row in rows] == [True] + 5 * [False]
    page = as_table(plan, recipe_of("bert-tiny"))
    assert "smallbench pretrain bert-tiny" in page
    assert max(map(len, page.splitlines())) <= 110


def test_json_holds_the_plan():
    assert json.loads(tiny_plan().to_json()) == json.loads(
        json.dumps(dataclasses.asdict(tiny_plan()))
    )


def test_functions_that_need_a_tokenizer_say_so():
    with pytest.raises(ConfigError, match=r"--model.vocab_size=8192"):
        make_plan(RECIPES["bert-tiny"](), V100)


def test_a_huge_batch_is_planned_with_rows_that_can_be_traced():
    config = recipe_of("bert-tiny", train__global_batch_size=10**6)
    rows = rows_to_plan(config)
    assert 10**6 % rows == 0
    assert MAX_TRACED_TOKENS // 2 < rows * config.sequence_length <= MAX_TRACED_TOKENS
    usual = recipe_of("bert-tiny")
    assert rows_to_plan(usual) == usual.train.rows_per_forward


@pytest.mark.parametrize("key", [
    "train__global_batch_size", "train__max_steps", "sequence_length", "model__num_hidden_layers",
    "model__hidden_size", "model__vocab_size",
])  # fmt: skip
@pytest.mark.parametrize("value", [10**10, 10**30])
def test_absurd_sizes_are_refused_before_anything_is_built(key, value):
    with pytest.raises(ConfigError, match=rf"={value} is out of range; expected "):
        recipe_of("bert-tiny", **{key: value})


def test_a_vocabulary_without_words_cannot_be_planned():
    with pytest.raises(ConfigError, match=r"model.vocab_size=5 is out of range; expected at least"):
        make_plan(recipe_of("bert-tiny", model__vocab_size=5), V100)


def test_a_batch_without_divisors_gets_a_remedy():
    plan = make_plan(recipe_of("bert-tiny", train__global_batch_size=999_983), V100, compares=False)
    assert plan.decision.num_rows == 1
    assert "999,983 has no suitable divisor: choose a multiple of 64" in plan.reason
    assert "divisor" not in tiny_plan().reason


def test_times_are_in_the_unit_that_people_use():
    assert duration((0.5, 1.5)) == "0.5–1.5 hours"
    assert duration((20.0, 60.0)) == "0.8–2.5 days"
    assert duration((1e6, 1e7)) == "114.2–1,141.6 years"
    assert [unit_of(s)[0] for s in (0.04, 1.9, 2, 119, 120, 7_200)] == [
        "ms", "ms", "s", "s", "minutes", "hours",
    ]  # fmt: skip


def test_what_is_offloaded_takes_the_largest_micro_batch_that_fits():
    """Each micro-batch carries every gradient to the host."""
    config = recipe_of("bert-tiny", train__micro_batch_size=4, train__offload="optimizer")
    planner = Planner(config, device_type="cuda", precision="fp16")
    choices = choices_of(config)
    assert decide(planner, choices, 16 * GIB).num_rows == 32
    sixteen = planner.memory(choices[0], 16).peak
    assert decide(planner, choices, sixteen).num_rows == 16


def test_hours_for_less_than_one_step_plan_no_steps():
    plan = make_plan(recipe_of("bert-tiny"), V100, hours=1e-300)
    assert plan.budget.steps == 0
    text = as_table(plan, recipe_of("bert-tiny"))
    assert "not one step: a step takes" in text
    assert "--max_steps" not in text


def test_a_run_says_once_what_was_planned_and_measured():
    said, progress = [], Progress(step=10, num_tokens=1000, train_seconds=5.0)
    config = recipe_of("bert-tiny")
    callback = ComparePlan(
        config, EngineChoice(), PeakMeter(torch.device("cpu")), device=torch.device("cpu"),
        precision="bf16", num_rows=32, every_steps=2, say=said.append,
    )  # fmt: skip
    callback.on_start(progress)
    for step in (11, 12, 13, 14):
        progress.step, progress.num_tokens = step, progress.num_tokens + 100
        progress.train_seconds += 1.0
        callback.after_step(progress, None)
    assert len(said) == 2
    assert said[0].startswith("planned: torch, 32 rows at a time, 0.")
    assert said[1].endswith("GiB, 100 tokens/s")
    assert "; measured 0." in said[1]
