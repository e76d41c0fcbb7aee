"""Tracks: an entry's evidence decides which track admits it; each ranks its own tasks."""

import re

import numpy as np
import pytest

from smallbench.leaderboard.board import board_rows, compare, render_comparison
from smallbench.leaderboard.compute import count_parameters, train_flops
from smallbench.leaderboard.entry import Stage
from smallbench.leaderboard.evaluation import evaluate
from smallbench.leaderboard.track_table import TRACKS
from smallbench.leaderboard.verdict import report_text
from smallbench.models import ARCHITECTURES
from smallbench.objectives import OBJECTIVES as OBJECTIVE_CLASSES
from smallbench.objectives.config import MaskedLMConfig, ReplacedTokenConfig
from smallbench.objectives.masking import Vocabulary, micro_batches, step_generator
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made
from tests.leaderboard.tampered.base import edit, reconfigure, relog, rerun
from tests.leaderboard.tampered.tiers import as_reference

GOLD = synthetic_gold(scale=0.05)
VOCABULARY = Vocabulary(
    size=128, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4)
)
FIVE = ("cola", "sst2", "mrpc", "stsb", "rte")


@pytest.fixture
def tiny(tmp_path):
    return write_made(tmp_path, synthetic_entry("tiny", GOLD, seed=0, track="tiny"))


@pytest.fixture
def small(tmp_path):
    return write_made(tmp_path, synthetic_entry("small", GOLD, seed=0))


def wrong(folder):
    found = evaluate(folder, GOLD).findings
    return {f"{f.verdict} {f.check}: {f.reason}" for f in found if f.verdict != "passed"}


def test_an_entry_is_on_the_boards_that_admit_it_and_on_no_other(tiny, small):
    evaluations = [evaluate(folder, GOLD) for folder in (tiny, small)]
    assert [e.tracks for e in evaluations] == [("tiny",), ("small", "any")]
    slugs = {name: [row.entry.slug for row in board_rows(evaluations, name)]
             for name in ("robust", "tiny", "any", "paper")}  # fmt: skip
    assert slugs == {"robust": ["small"], "tiny": ["tiny"], "any": ["small"], "paper": ["small"]}


def test_a_reference_has_scores_and_leads_but_no_rank(tmp_path):
    folders = [
        write_made(tmp_path, synthetic_entry(name, GOLD, seed=i, track="tiny", quality=quality))
        for i, (name, quality) in enumerate((("good", 20), ("random", -20), ("other", 0)))
    ]
    as_reference(folders[1])
    evaluations = [evaluate(folder, GOLD) for folder in folders]
    assert [e.tier for e in evaluations] == ["logged", "reference", "logged"]
    rows = {row.entry.slug: row for row in board_rows(evaluations, "tiny")}
    assert list(rows) == ["good", "other", "random"]
    assert [str(row.rank) for row in rows.values()] == ["1", "2", "None"]
    assert rows["good"].leads == {"other", "random"}
    assert rows["random"].interval.low < rows["random"].average < rows["random"].interval.high
    alone = {r.entry.slug: r for r in board_rows([evaluations[0], evaluations[2]], "tiny")}
    for slug, row in alone.items():
        assert (row.rank, row.interval) == (rows[slug].rank, rows[slug].interval)
        assert row.leads == rows[slug].leads - {"random"}


def test_the_average_of_a_tiny_entry_is_of_its_five_tasks(tiny):
    assert TRACKS["tiny"].tasks == FIVE
    evaluation = evaluate(tiny, GOLD)
    view = evaluation.views["robust"]
    assert evaluation.tier == "logged"
    assert (tuple(view.tasks), view.protocol) == (FIVE, "tiny-v1")
    assert view.average == pytest.approx(sum(c.score for c in view.tasks.values()) / 5)
    assert {cell.num_runs for cell in view.tasks.values()} == {3}


@pytest.mark.parametrize("watts", [1e-3, 1e5])
def test_the_energy_of_a_processor_is_that_of_a_machine(tiny, watts):
    seconds = evaluate(tiny, GOLD).entry.pretrain.wall_seconds
    edit(tiny, "energy", "method", to="codecarbon")
    edit(tiny, "energy", "kwh", to=watts * seconds / 3.6e6)
    assert any("kWh, but 1 to 6e+03 W over this time" in reason for reason in wrong(tiny))


def test_a_model_that_did_not_start_from_scratch_is_on_no_board_with_a_limit(tiny, small):
    for folder in (tiny, small):
        edit(folder, "model", "from_scratch", to=False)
    assert evaluate(tiny, GOLD).rejected
    assert evaluate(small, GOLD).tracks == ("any",)


def test_entries_of_different_protocols_are_not_compared(tiny, small):
    a, b = evaluate(tiny, GOLD), evaluate(small, GOLD)
    with pytest.raises(AssertionError, match="cannot be compared"):
        compare(a.views["robust"], b.views["robust"])
    assert "robust: not in both under one protocol" in render_comparison(a, b)


def times(factor):
    """Steps, tokens and FLOPs of the entry and of its log, `factor` times as many."""

    def change(folder):
        def lines(found):
            keys = ("step", "tokens", "seconds", "train_flops")
            return [line | {k: line[k] * factor for k in keys if k in line} for line in found]

        for key in ("num_steps", "num_tokens", "wall_seconds", "gpu_active_seconds"):
            edit(folder, "pretrain", key, to=lambda value: value * factor)
        edit(folder, "energy", "kwh", to=lambda value: value and value * factor)
        edit(folder, "data", "epochs", to=lambda value: value * factor)
        reconfigure(folder, "train", "max_steps", to=lambda value: value * factor)
        relog(folder, lines)

    return change


def logged(key, value):
    return lambda folder: relog(
        folder, lambda lines: [line | {key: value(line.get(key, 0))} for line in lines]
    )


def without_count(folder):
    """Of an architecture that only its own model counts, whose log lacks the count."""
    other_architecture(folder)
    relog(folder, lambda lines: [{k: v for k, v in x.items() if k != "train_flops"}
                                 for x in lines])  # fmt: skip


def other_architecture(folder):
    reconfigure(folder, "model", "architecture", to="gate.py:Gated")
    edit(folder, "model", "architecture", to="gate.py:Gated")


def without_task(folder):
    rerun(folder, lambda lines: [line for line in lines if line["task"] != "rte"])
    for path in (folder / "predictions").glob("rte*"):
        path.unlink()


def each_run(key, value):
    return lambda folder: rerun(
        folder, lambda lines: [line | {key: value(line[key])} for line in lines]
    )


REFUSED = {
    "too_many_flops": (times(30), "rejected track: no track admits it; track 'tiny': .* FLOPs"),
    "too_many_by_the_log_alone": (
        logged("train_flops", lambda value: value * 100),
        "rejected track: no track admits it; track 'tiny': .* FLOPs, but the limit is 2e",
    ),
    "fewer_in_the_log_than_its_sizes_make": (
        logged("train_flops", lambda value: value / 2), "rejected compute: .* FLOPs in the log"),
    "flops_that_fall": (
        lambda folder: relog(folder, lambda lines: [
            line | {"train_flops": 1e12 - line["step"]} for line in lines]),
        "rejected log: train_flops do not increase"),
    "flops_that_nobody_counted": (
        without_count, "rejected track: .* cannot be counted here and are not in its log"),
}  # fmt: skip

UNRANKED = {
    "task_missing": (without_task, "flagged metrics: rte is missing, so AVG cannot be computed"),
    "other_epochs": (
        each_run("epochs", lambda value: value + 1),
        "flagged protocol: not tiny-v1, so not ranked: cola: epochs other than"),
    "other_seeds": (
        each_run("seed", lambda value: value + 1),
        "flagged protocol: not tiny-v1, so not ranked: cola: seeds 2, 3, 4"),
    "other_pooling": (
        lambda folder: edit(folder, "finetune", "pooling", to=None),
        "flagged protocol: not tiny-v1, so not ranked: pooling none, not mean"),
    "other_rates": (
        lambda folder: edit(folder, "finetune", "learning_rates", to=lambda v: [*v, 1.0]),
        "flagged protocol: not tiny-v1, so not ranked: another grid"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_entry_over_the_limit_of_its_only_track_is_rejected(name, tiny):
    tamper, sentence = REFUSED[name]
    tamper(tiny)
    found = wrong(tiny)
    assert any(re.match(sentence, one) for one in found), found
    assert evaluate(tiny, GOLD).rejected


@pytest.mark.parametrize("name", UNRANKED)
def test_runs_that_are_not_the_protocols_have_no_rank(name, tiny):
    tamper, sentence = UNRANKED[name]
    tamper(tiny)
    evaluation = evaluate(tiny, GOLD)
    assert sentence in "\n".join(wrong(tiny))
    rows = board_rows([evaluation], "tiny")
    assert all(row.rank is None for row in rows)


def test_a_plugin_is_admitted_by_the_count_in_its_log(tiny):
    other_architecture(tiny)
    evaluation = evaluate(tiny, GOLD)
    assert evaluation.tracks == ("tiny",)
    assert evaluation.tier == "claimed"  # its parameters are not counted here


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda f: edit(f, "model", "num_parameters", to=40_000_000), "40,000,000 parameters"),
        (times(1000), "5.46e+20 training FLOPs, but the limit is 6e+18"),
        (lambda f: edit(f, "hardware", "memory_bytes", to=80 << 30), "the card has 80.0 GB"),
    ],
    ids=["parameters", "flops", "memory"],
)
def test_over_a_limit_of_the_small_track_an_entry_is_on_any_hardware(tamper, reason, small):
    tamper(small)
    sentence = f"flagged track: not in track 'small', but in 'any': {reason}"
    assert sentence in "\n".join(wrong(small))
    assert evaluate(small, GOLD).tracks == ("any",)


def test_a_track_counts_the_parameters_itself(small):
    edit(small, "model", "vocab_size", to=192_000)
    edit(small, "model", "num_parameters", to=30_000_000)
    assert "not in track 'small', but in 'any': 30,005,184 parameters" in "\n".join(wrong(small))
    assert evaluate(small, GOLD).tracks == ("any",)


def test_a_report_names_the_track_that_refuses(tiny):
    times(30)(tiny)
    assert "REJECTED  track: no track admits it" in report_text(evaluate(tiny, GOLD))


SIZES = {
    "vocab_size": 128, "embedding_size": 32, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
OBJECTIVES = {"masked_lm": MaskedLMConfig, "replaced_token": ReplacedTokenConfig}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "electra", "roformer"])
def test_parameters_are_counted_as_the_model_has_them(architecture):
    encoder = ARCHITECTURES.config_class(architecture)(**SIZES)
    model = ARCHITECTURES[architecture](encoder, head="none")
    assert count_parameters(encoder).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "name"),
    [(a, n) for a in ("bert", "roberta", "deberta", "electra") for n in OBJECTIVES
     if (a, n) != ("roberta", "replaced_token")],  # a narrower RoBERTa does not exist
)  # fmt: skip
def test_operations_are_counted_as_the_trainer_counts_them(architecture, name):
    """Up to the number of masked tokens, which is drawn."""
    encoder = ARCHITECTURES.config_class(architecture)(**SIZES)
    settings = OBJECTIVES[name](**({"generator_width": 0.5} if name == "replaced_token" else {}))
    objective = OBJECTIVE_CLASSES[name](settings, encoder, VOCABULARY)
    ids_BL = np.random.default_rng(0).integers(5, 90, (16, 64))
    batch = objective.corrupt(ids_BL, step_generator(0, 0))
    (whole,) = micro_batches(batch, batch.num_rows)
    counted = train_flops(
        encoder, [Stage(1, 16, 64)], objective=name, mask_fraction=0.15, generator_width=0.5
    )
    assert counted == pytest.approx(objective.train_flops(whole), rel=0.01)


def test_an_objective_of_ones_own_is_not_counted():
    encoder = ARCHITECTURES.config_class("bert")(**SIZES)
    sizes = {"mask_fraction": 0.15, "generator_width": 0.25}
    assert train_flops(encoder, [Stage(1, 1, 64)], objective="mine.py:Mine", **sizes) is None
