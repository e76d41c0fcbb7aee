"""Variants × seeds through the console script's own path, tiny."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smallbench.ablation import driver, outcomes
from smallbench.ablation.outcomes import RunOutcome
from smallbench.ablation.plan import changes_of, design_of, variants_of, warmup_caution
from smallbench.ablation.result_tables import markdown, results_of, to_json
from smallbench.errors import ConfigError, DivergedError, InterruptedRunError
from smallbench.jobs.ablate import Options, plan, run
from smallbench.jobs.cli import main
from smallbench.stop import Stop
from smallbench.train import precision
from tests.ablation.conftest import FLOPS, SMALL, VARIANTS, flags


def parts(corpus, seeds=(1, 2)):
    variants = variants_of(VARIANTS, flops=FLOPS, changes=changes_of(SMALL))
    configs = {variant.name: variant.config for variant in variants}
    design = design_of(variants, seeds, flops=FLOPS, scoring=None)
    return design, driver.Training(configs, corpus)


def test_the_table_has_intervals_differences_and_needed_seeds(whole):
    content = json.loads((whole / "ablation.json").read_text())
    losses = content["measures"]["held_out_loss"]
    assert [run["status"] for run in content["runs"]] == ["done"] * 4
    assert all(run["train_flops"] >= FLOPS for run in content["runs"])
    assert losses["bert-tiny"]["comparison"] is None
    found = losses["deberta-tiny"]["comparison"]
    first, other = (losses[name]["values"] for name in VARIANTS)
    expected = sum(other[seed] - first[seed] for seed in ("1", "2")) / 2
    assert found["difference"]["mean"] == pytest.approx(expected)
    assert 0 < found["p_value"] < 1
    assert f"needs {found['needed_seeds']} seeds" in (whole / "ablation.md").read_text()
    page = (whole / "report.html").read_text()
    for name in ("bert-tiny seed 1", "deberta-tiny seed 2", "Held-out loss (lower is better)"):
        assert name in page


def test_an_ablation_interrupted_twice_ends_as_the_uninterrupted_one(whole, corpus, tmp_path):
    design, training = parts(corpus)
    runs = design.runs(tmp_path)
    for asks in (3, 9):  # within the first run, and later
        left = iter(range(asks))
        with pytest.raises(InterruptedRunError):
            driver.run_all(runs, training, stop=Stop(lambda left=left: next(left, -1) < 0))
    found = to_json(results_of(design, driver.run_all(runs, training)))
    assert json.loads(json.dumps(found)) == json.loads((whole / "ablation.json").read_text())


def test_a_seed_more_keeps_the_finished_runs(whole, corpus, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "more")
    begun = []
    pretrain = driver.pretrain
    monkeypatch.setattr(
        driver, "pretrain", lambda c, **kw: (begun.append(c.train.seed), pretrain(c, **kw))
    )
    run(
        Options(
            variants=VARIANTS, data=str(corpus), flops=FLOPS, seeds=(1, 2, 3), out=out, set=SMALL
        )
    )
    assert begun == [3, 3]


def test_a_diverged_run_is_a_result_and_a_failed_one_ends_last(
    corpus, tmp_path, monkeypatch, capsys
):
    def pretrain(config, **arguments):
        if config.train.seed == 2 and config.recipe == "bert-tiny":
            raise DivergedError("20 steps in a row")
        if config.train.seed == 3 and config.recipe == "deberta-tiny":
            raise ConfigError("a broken plug-in")

    loss = {"held_out_loss": 2.0, "steps": 5, "tokens": 9, "train_flops": FLOPS}
    monkeypatch.setattr(driver, "pretrain", pretrain)
    monkeypatch.setattr(outcomes, "_pretraining", lambda run: loss)
    code = main(["ablate", *VARIANTS, *flags(corpus, tmp_path, seeds="1,2,3")])
    said = capsys.readouterr()
    assert code == 78
    assert "1 of 6 runs failed; deberta-tiny seed 3: a broken plug-in" in said.err
    assert "bert-tiny seed 2 diverged: 20 steps in a row" in said.out
    assert [path.name for path in (tmp_path / "deberta-tiny").glob("*/outcome.json")] != []
    assert not (tmp_path / "deberta-tiny" / "seed-3" / "outcome.json").exists()


def test_one_seed_has_no_p_value_and_says_why(corpus):
    design, _ = parts(corpus, seeds=(1,))
    done = [RunOutcome(name, 1, "done", held_out_loss=float(n)) for n, name in enumerate(VARIANTS)]
    text = markdown(results_of(design, done))
    assert "no p-value, since one seed shows no spread" in text


def test_another_objective_is_another_loss_and_is_not_compared(corpus, tmp_path):
    first, _ = variants_of(VARIANTS, flops=FLOPS, changes=changes_of(SMALL))
    masked = replace(first.config.objective, mask_fraction=0.15)
    config = replace(first.config, objective=masked)
    other = replace(first, name="less", folder="less", config=config)
    done = [
        RunOutcome(v.name, seed, "done", held_out_loss=seed / 7)
        for v in (first, other)
        for seed in (1, 2, 3)
    ]
    design = design_of([first, other], (1, 2, 3), flops=FLOPS, scoring=None)
    results = results_of(design, done)
    comparison = results.measures["held_out_loss"]["less"].comparison
    assert comparison.p_value is None
    assert "objective.mask_fraction: 0.3 → 0.15" in comparison.reason


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["bert-tiny"], {}, "needs two variants or more"),
        (["bert-tiny", "bert-tiny"], {}, "bert-tiny is given twice"),
        (["bert-tiny", "brt-tiny"], {}, "did you mean 'bert-tiny'"),
        (VARIANTS, {"seeds": "1,2,1"}, "none twice"),
        (VARIANTS, {"flops": "0"}, "expected > 0"),
        (VARIANTS, {"also": ["train.seed=3"]}, "'ablate' sets train.seed itself"),
        (VARIANTS, {"also": ["train.sead=3"]}, "did you mean '--train.seed'"),
        (VARIANTS, {"also": ["sequence"]}, "expected KEY=VALUE"),
        (VARIANTS, {"also": ["train.precision=fp17"]}, "fp17"),
        (VARIANTS, {"data": "missing"}, "missing"),
        (VARIANTS, {"glue": "missing"}, "missing"),
        (VARIANTS, {"tasks": "cola"}, "--tasks needs --glue"),
        (VARIANTS, {"learning_rate": 1e-3}, "--learning_rate needs --glue"),
    ],
)
def test_a_broken_command_is_refused_before_anything_runs(
    corpus, tmp_path, monkeypatch, capsys, words, more, said
):
    monkeypatch.chdir(tmp_path)
    code = main(["ablate", *words, *flags(corpus, "out", **more)])
    error = capsys.readouterr().err
    assert code in {2, 65, 78}
    assert error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_gpu_is_unavailable(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = [*VARIANTS, *flags(corpus, tmp_path / "out", device="cuda")]
    assert main(["ablate", *words]) == 69
    assert "variant bert-tiny: device 'cuda' is not available" in capsys.readouterr().err


def test_keys_may_be_given_as_flags_beside_set(corpus, tmp_path, capsys):
    words = [*VARIANTS, *flags(corpus, tmp_path / "o"), "--dry_run"]
    assert main(["ablate", *words, "--train.milestones=2,4", "--train.compile"]) == 0
    said = capsys.readouterr().out
    assert "- train.milestones=2,4\n" in said
    assert "- train.compile=true\n" in said
    assert main(["ablate", *words, "--train.global_batch_size=4"]) == 78
    assert "--train.global_batch_size is given twice" in capsys.readouterr().err
    assert main(["ablate", *words, "--optim.learning_rat=1"]) == 78
    assert "did you mean '--optim.learning_rate'" in capsys.readouterr().err


def test_another_budget_or_corpus_in_one_folder_is_refused(whole, corpus, tmp_path, capsys):
    other = shutil.copytree(corpus, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert main(["ablate", *VARIANTS, *flags(corpus, whole, flops=2e8)]) == 78
    assert "train.max_flops" in capsys.readouterr().err
    assert main(["ablate", *VARIANTS, *flags(other, whole)]) == 78
    assert "cannot continue" in capsys.readouterr().err


def test_the_plan_names_runs_shares_and_steps(corpus, tmp_path, capsys):
    assert main(["ablate", *VARIANTS, *flags(corpus, tmp_path / "o"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "# 4 pretrainings (2 variants × 2 seeds) of 6e+07 FLOPs each, 2.4e+08 in all" in said
    assert "# bert-tiny: seeds 1,2, 50% of the FLOPs, about 4 steps" in said
    assert not (tmp_path / "o").exists()


def test_the_plan_has_the_hours_of_a_run_on_a_known_gpu(corpus, monkeypatch):
    monkeypatch.setattr(precision, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100-SXM2-16GB")
    given = Options(variants=VARIANTS, data=str(corpus), flops=1e17, out=Path("o"), set=SMALL)
    lines = plan(given).splitlines()
    assert re.search(r"steps and [\d.]+ hours to [\d.]+ hours a run$", lines[1])


@pytest.mark.slow
def test_glue_is_scored_and_an_interruption_within_it_changes_nothing(corpus, tmp_path):
    def options(out):
        return Options(
            variants=VARIANTS, data=str(corpus), flops=FLOPS, seeds=(1, 2), out=out, set=SMALL,
            glue="samples", tasks=("rte", "cola"), epochs=1, max_train_examples=32,
        )  # fmt: skip

    run(options(tmp_path / "whole"))
    run(options(tmp_path / "other"))
    (tmp_path / "other" / "bert-tiny" / "seed-2" / "outcome.json").unlink()
    [folder] = (tmp_path / "other" / "bert-tiny" / "seed-2").glob("glue-*")
    shutil.rmtree(folder / "runs" / "rte")
    run(options(tmp_path / "other"))
    first, other = (
        json.loads((tmp_path / name / "ablation.json").read_text()) for name in ("whole", "other")
    )
    assert first == other
    assert first["measures"]["glue_mean"]["deberta-tiny"]["comparison"]["difference"]
    assert set(first["runs"][0]["tasks"]) == {"rte", "cola"}


@pytest.mark.parametrize(
    ("fraction", "steps", "said"),
    [
        (0.02, 660, "rises over 13 steps only.*warmup_fraction=0.16"),
        (0.16, 660, ""),
        (0.02, 5_200, ""),
        (0.02, 100, ""),  # too short to learn with any warm-up, which is said elsewhere
    ],
)
def test_a_warmup_that_a_small_budget_made_short_is_named(fraction, steps, said):
    caution = warmup_caution(fraction, steps)
    assert re.search(said, caution)
    assert bool(caution) == bool(said)
