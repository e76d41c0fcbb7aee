"""Cases of the model, its pretraining, its log and its costs."""

from __future__ import annotations

import json
import shutil
from functools import partial

from smallbench.plugins import sha256_of
from tests.leaderboard.tampered.base import (
    CORPUS,
    Case,
    case,
    changed_lines,
    edit,
    noise,
    reconfigure,
    relog,
    scaled,
)

CASES = {
    "parameters_understated": (
        scaled("model", "num_parameters", by=0.9), "sizes", r"num_parameters .* the sizes give"),
    "parameters_without_embeddings_understated": (
        scaled("model", "num_parameters_without_embeddings", by=0.95), "sizes",
        r"num_parameters_without_embeddings .* the sizes give"),
    "impossible_mfu": (
        lambda folder: (edit(folder, "pretrain", "gpu_active_seconds", to=lambda s: s / 5),
                        relog(folder, lambda lines: [
                            {**x, "seconds": x["seconds"] / 5, "tokens_per_second":
                             x["tokens_per_second"] and 5 * x["tokens_per_second"]}
                            for x in lines])),
        "compute", r"MFU \d\.\d+: more than the GPU can do"),
    "two_gpus": (
        lambda folder: edit(folder, "hardware", "count", to=2), "compute", r"2 GPUs"),
    "peak_of_another_gpu": (
        lambda folder: edit(folder, "hardware", "peak_tflops", to=989.0), "compute",
        r"peak_tflops 989, but the known peak is 125"),
    "tokens_off": (
        scaled("pretrain", "num_tokens", by=1.03), "tokens", r"steps × batch × length is"),
    "ramp_with_other_steps": (
        lambda folder: edit(folder, "pretrain", "ramps", to=[
            {"num_steps": 10, "global_batch_size": 64, "sequence_length": 128}]),
        "tokens", r"the ramps have 10 steps"),
    "epochs_off": (
        scaled("data", "epochs", by=0.5), "data", r"tokens over unique tokens are"),
    "trained_on_glue": (
        lambda folder: edit(folder, "data", "contains_glue", to=True), "data",
        r"GLUE's dev or test sets"),
    "active_longer_than_the_clock": (
        scaled("pretrain", "wall_seconds", by=0.5), "tokens",
        r"gpu_active_seconds exceed wall_seconds"),
    "energy_of_a_phone": (
        scaled("energy", "kwh", by=0.01), "energy", r"kWh, but 45 to 330 W over this time"),
    "energy_of_a_town": (
        scaled("energy", "kwh", by=10), "energy", r"kWh, but 45 to 330 W over this time"),
    "energy_zero_of_nvml": (
        lambda folder: edit(folder, "energy", "kwh", to=0), "schema", r"energy.kwh: 0 is"),
    "energy_without_method": (
        lambda folder: edit(folder, "energy", "method", to=None), "energy", r"both or neither"),
    "configuration_edited": (
        lambda folder: edit(folder, "provenance", "config", "train", "seed", to=99), "model",
        r"config_digest does not match the configuration"),
    "sizes_other_than_configured": (
        lambda folder: reconfigure(folder, "model", "num_hidden_layers", to=24), "model",
        r"num_hidden_layers 12, but 24 in the configuration"),
    "warm_started": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "loss": min(x["loss"], 3.1 - n / 1e3), "mlm_loss": min(x["mlm_loss"], 3.1)}
            for n, x in enumerate(lines)]),
        "from scratch", r"the first MLM loss is 3\.10; from scratch it is near ln V = 10\.33"),
    "log_line_edited": (
        lambda folder: (folder / "train_log.jsonl").write_text(
            (folder / "train_log.jsonl").read_text().replace('"loss": 2.', '"loss": 1.', 1)),
        "log", r"the hash chain breaks at line \d+"),
    "log_cut": (
        lambda folder: (folder / "train_log.jsonl").write_text(
            "".join((folder / "train_log.jsonl").read_text().splitlines(keepends=True)[:300])),
        "log", r"train_log_sha256 is not the last hash"),
    "log_removed": (
        lambda folder: (folder / "train_log.jsonl").unlink(), "log", r"the log is missing"),
    "log_of_another_run": (
        lambda folder: shutil.copy(folder.parent / "original/train_log.jsonl", folder), "log",
        r"the hash chain breaks at line 1:"),
    "log_with_a_gap": (
        lambda folder: relog(folder, lambda lines: lines[:100] + lines[140:]), "log",
        r"a gap from step"),
    "log_too_coarse": (
        lambda folder: relog(folder, lambda lines: [*lines[::4], lines[-1]]), "log",
        r"102 points, expected at least 200"),
    "log_that_ends_early": (
        lambda folder: relog(folder, lambda lines: lines[:-1]), "log", r"the last step is"),
    "log_steps_repeat": (
        lambda folder: relog(folder, lambda lines: lines[:50] + lines[49:]), "log",
        r"steps do not increase at line 51"),
    "log_times_fall": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "seconds": 1.0} if n == 60 else x for n, x in enumerate(lines)]),
        "log", r"times do not increase at line 61"),
    "log_throughput_doubled": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "tokens_per_second": x["tokens_per_second"] and 2 * x["tokens_per_second"]}
            for x in lines]),
        "log", r"throughput × time is"),
    "log_computed_not_measured": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "seconds": lines[-1]["seconds"] * x["step"] / lines[-1]["step"]}
            for x in lines]),
        "log", r"step times do not vary"),
    "log_of_a_shorter_time": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "seconds": 0.8 * x["seconds"]} for x in lines]),
        "log", r"the log ends at .* s, not"),
    "log_with_all_tokens_at_the_end": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "tokens": n, "tokens_per_second": n and 1 / (x["seconds"] - y["seconds"])}
            for n, (x, y) in enumerate(zip(lines[:-1], lines[:1] + lines, strict=False))
        ] + lines[-1:]), "log", r"tokens at step .*, but steps × batch × length is"),
    "log_with_all_throughput_at_the_start": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "tokens_per_second": lines[-1]["tokens"] / x["seconds"] if n == 1 else 0}
            for n, x in enumerate(lines)]),
        "log", r"throughput × time differs from the tokens in 400 lines"),
    "log_of_negative_losses": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "loss": -5.0} if n > 5 else x for n, x in enumerate(lines)]),
        "log", r"loss -5: a cross-entropy is not negative"),
    "log_with_a_peak_that_falls": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "peak_memory_bytes": (9 << 30) - n} for n, x in enumerate(lines)]),
        "log", r"peak_memory_bytes falls, although it is the peak so far"),
    "log_line_of_other_keys": (
        lambda folder: (folder / "train_log.jsonl").write_text('{"step": 1}\n'), "log",
        r"line 1: not the keys and types"),
}  # fmt: skip
CORPUS |= {name: Case(tamper, "rejected", *rest) for name, (tamper, *rest) in CASES.items()}


@case("flagged", "from scratch", r"teacher: BERT-Large")
def distilled(folder):
    edit(folder, "model", "distilled_from", to="BERT-Large")


FLAGGED_LOGS = {
    "log_of_a_loss_out_of_reach": (
        lambda x, n: {"mlm_loss": 1e15} if n == 50 else {},
        r"mlm_loss 1e\+15, but it begins at 10"),
    "log_without_losses_between": (
        lambda x, n: {"loss": None} if 0 < n < 400 else {}, r"the loss is missing in 399 lines"),
    "log_of_a_peak_below_the_weights": (
        lambda x, n: {"peak_memory_bytes": 1}, r"peak_memory_bytes 1: the weights alone have"),
    "log_with_all_operations_at_the_end": (
        lambda x, n: {"train_flops": n} if 0 < n < 400 else {},
        r"train_flops do not grow with the tokens"),
}  # fmt: skip
for name, (change, reason) in FLAGGED_LOGS.items():
    tamper = partial(relog, change=partial(changed_lines, change))
    CORPUS[name] = Case(tamper, "flagged", "log", reason)


@case("flagged", "copies", r"the losses of the training log equal those of original")
def losses_of_another_run(folder):
    lines = (folder.parent / "original" / "train_log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] + 1e-6 for line in lines]
    relog(folder, lambda lines: [{**x, "loss": y} for x, y in zip(lines, losses, strict=True)])


@case("flagged", "compute", r"MFU 0\.00\d, expected 0")
def mfu_of_nothing(folder):
    edit(folder, "pretrain", "gpu_active_seconds", to=lambda s: s * 100)
    edit(folder, "pretrain", "wall_seconds", to=lambda s: s * 100)
    edit(folder, "energy", "kwh", to=lambda kwh: kwh * 100)
    relog(folder, lambda lines: [
        {**x, "seconds": 100 * x["seconds"],
         "tokens_per_second": x["tokens_per_second"] and x["tokens_per_second"] / 100}
        for x in lines])  # fmt: skip


@case("not done", "configuration", r"sequence_length is missing in the configuration")
def configuration_of_nothing(folder):
    edit(folder, "provenance", "config", to={})
    reconfigure(folder, "model", to={})


@case("not done", "configuration", r"model.architecture is missing in the configuration")
def configuration_of_a_list(folder):
    reconfigure(folder, "model", to=[1, 2])


@case("not done", "configuration", r"optim.optimizer 'lab.py:Adam' names code that is not in")
def optimizer_without_its_code(folder):
    reconfigure(folder, "optim", to={"optimizer": "lab.py:Adam"})


@case("flagged", "tokens", r"train.precision fp32 in the configuration, fp16 in the entry")
def configuration_of_another_precision(folder):
    reconfigure(folder, "train", "precision", to="fp32")


@case("flagged", "tokens", r"then.sequence_length 512 in the configuration, but no such ramp")
def second_phase_that_is_not_declared(folder):
    reconfigure(folder, "then", to={"sequence_length": 512, "begin_fraction": 0.1})


@case("flagged", "compute", r"\d.* training FLOPs, but train.max_flops is 1e\+12")
def more_operations_than_configured(folder):
    reconfigure(folder, "train", "max_flops", to=1e12)


@case("rejected", "plugins", r"the plug-in lab.py is not UTF-8 text")
def plugin_of_noise(folder):
    (folder / "plugins").mkdir()
    (folder / "plugins/lab.py").write_bytes(noise(5))
    files = {"lab.py": "plugins/lab.py"}
    sha256 = sha256_of("lab.py", {"lab.py": noise(5)})
    edit(folder, "provenance", "plugins", to=[{"name": "lab.py", "sha256": sha256, "files": files}])


def other_objective(folder, name, **settings):
    edit(folder, "model", "objective", to=name)
    reconfigure(folder, "objective", to={"objective": name, **settings})


@case("rejected", "model", r"unknown objective 'my_lm'")
def objective_that_nobody_has(folder):
    other_objective(folder, "my_lm")


@case("not done", "compute", r"operations of bert with objective lab.py:Own cannot be counted")
def operations_that_only_the_log_counts(folder):
    other_objective(folder, "lab.py:Own")


@case("rejected", "compute", r"invalid sizes: .*generator")
def generator_without_a_whole_head(folder):
    other_objective(folder, "replaced_token", generator_width=0.001)


@case("not done", "provenance", r"the code differed from its commit")
def dirty_code(folder):
    edit(folder, "provenance", "dirty", to=True)


@case("not done", "log", r"there is no training log")
def no_log(folder):
    (folder / "train_log.jsonl").unlink()
    edit(folder, "provenance", "train_log_sha256", to=None)


@case("flagged", "compute", r"'8x NVIDIA H200 \(was V100-SXM2-16GB\)' is not the name of one card")
def card_with_another_name_in_its_name(folder):
    edit(folder, "hardware", "gpu", to="8x NVIDIA H200 (was V100-SXM2-16GB)")


@case("flagged", "compute", r"memory_bytes 1: the weights alone have")
def card_of_one_byte(folder):
    edit(folder, "hardware", "memory_bytes", to=1)


@case("flagged", "compute", r"the peak of a processor is not known; expected null")
def peak_of_a_processor(folder):
    edit(folder, "hardware", "gpu", to="x86_64")


@case("flagged", "price", r"energy.gco2_per_kwh 0 is less than any grid's")
def energy_without_carbon(folder):
    edit(folder, "energy", "gco2_per_kwh", to=-0.0)


@case("flagged", "tokens", r"wall_seconds are over 10 × gpu_active_seconds")
def clock_of_an_age(folder):
    edit(folder, "pretrain", "wall_seconds", to=1e15)


@case("not done", "compute", r"the peak of 'Quantum 9000' in fp16 is not known")
def unknown_gpu(folder):
    edit(folder, "hardware", "gpu", to="Quantum 9000")
