"""Entries that somebody has tampered with: how each is made, and what must be said of it.

The base is a good entry of tier *logged*; some cases have another one, `original`, beside it.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np

from smallbench.config import digest
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import chained, predictions_bytes
from smallbench.leaderboard.predictions import parse_predictions
from smallbench.leaderboard.track_table import TRACKS
from smallbench.plugins import sha256_of
from tests.leaderboard.synthetic import synthetic_entry, synthetic_gold, write_made

SCALE = 0.1
TODAY = date(2025, 1, 10)
"""Day of the check; the good entry is of 2025-01-01."""
MIB = 1 << 20
CORPUS: dict[str, Case] = {}
BESIDE = {
    "damaged_file_that_ends_like_anothers",
    "log_of_another_run",
    "losses_of_another_run",
    "predictions_of_another_entry",
    "predictions_of_another_entry_packed_anew",
    "name_in_other_letters",
    "name_with_a_symbol_for_a_letter",
    "weights_of_another_entry",
}
"""Cases that take something from the other entry."""


@dataclass(frozen=True)
class Case:
    """`tamper` changes the folder of a good entry."""

    tamper: Callable[[Path], None]
    verdict: str
    check: str
    reason: str
    """Regular expression."""


def write_corpus(root: Path) -> None:
    """Every case as a folder `root/NAME/good`, some beside `root/NAME/original`."""
    gold = synthetic_gold(scale=SCALE)
    made = root.with_name(f"{root.name}-made")
    write_made(made, synthetic_entry("original", gold, seed=7))
    good = write_made(made, synthetic_entry("good", gold, seed=0))
    for name, case in CORPUS.items():
        shutil.copytree(good, root / name / "good", copy_function=shutil.copyfile)
        if name in BESIDE:
            shutil.copytree(made / "original", root / name / "original")
        case.tamper(root / name / "good")


def case(verdict: str, check: str, reason: str):
    """Register the decorated function as a case under its name."""

    def add(tamper):
        CORPUS[tamper.__name__] = Case(tamper, verdict, check, reason)
        return tamper

    return add


def edit(folder: Path, *path: str, to=None, remove: bool = False) -> None:
    """Set or remove a value of entry.json; `to` may be a function of the old one."""
    file = folder / "entry.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = to(place[path[-1]]) if callable(to) else to
    file.write_text(json.dumps(content))


def reconfigure(folder: Path, *path: str, to) -> None:
    """Change the configuration and every digest of it."""
    edit(folder, "provenance", "config", *path, to=to)
    content = json.loads((folder / "entry.json").read_text())
    edit(folder, "provenance", "config_digest", to=digest(content["provenance"]["config"]))
    relog(folder, lambda lines: lines)


def relog(folder: Path, change) -> None:
    """Rewrite the log and its links, as a careful forger would."""
    file = folder / "train_log.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    content = json.loads((folder / "entry.json").read_text())
    records = ({k: v for k, v in line.items() if k != "sha256"} for line in lines)
    lines = chained(records, config_digest=content["provenance"]["config_digest"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit(folder, "provenance", "train_log_sha256", to=lines[-1]["sha256"])


def changed_lines(change, lines):
    """The lines of a log, each with the values that `change` returns for it and its number."""
    return [{**line, **change(line, number)} for number, line in enumerate(lines)]


def rerun(folder: Path, change) -> None:
    """Rewrite the lines of runs.jsonl."""
    file = folder / "runs.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def prediction(folder: Path, task: str, number: int = 0, split: str = "dev") -> Path:
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    found = [x["predictions"] for x in lines if x["task"] == task and split in x["predictions"]]
    return folder / found[number][split]


def retext(path: Path, change) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def scaled(*path: str, by: float):
    """A tampering that multiplies a number of entry.json."""
    return lambda folder: edit(folder, *path, to=lambda value: type(value)(value * by))


# ---- entry.json


@case("rejected", "schema", "reported: this tier has none")
def edited_score(folder):
    edit(folder, "reported", to={"source": "me", "scores": {}, "average": 99.0})


@case("rejected", "schema", r"'scores' was unexpected")
def unknown_field(folder):
    edit(folder, "scores", to={"cola": 70.0})


@case("rejected", "schema", r"hardware: .*'nvlink' was unexpected")
def unknown_field_inside_a_section(folder):
    edit(folder, "hardware", "nvlink", to=True)


@case("rejected", "schema", r"schema_version 2; this smallbench reads 1")
def future_schema(folder):
    edit(folder, "schema_version", to=2)


@case("rejected", "schema", r"schema_version True")
def schema_version_true(folder):
    edit(folder, "schema_version", to=True)


@case("rejected", "schema", r"'finetune' is a required property")
def section_missing(folder):
    edit(folder, "finetune", remove=True)


@case("rejected", "schema", r"nested deeper than 12 levels")
def deep_json(folder):
    (folder / "entry.json").write_text("[" * 100_000 + "]" * 100_000)


@case("rejected", "schema", r"nested deeper than 12 levels")
def deep_configuration(folder):
    value = 1
    for _ in range(40):
        value = {"a": value}
    edit(folder, "provenance", "config", "model", to=value)


@case("rejected", "schema", r"entry.json is not valid JSON")
def json_cut_off(folder):
    file = folder / "entry.json"
    file.write_text(file.read_text()[:-200])


@case("rejected", "schema", r"a key occurs twice")
def key_twice(folder):
    file = folder / "entry.json"
    file.write_text(file.read_text().replace("{", '{"tier": "verified",', 1))


@case("rejected", "schema", r"NaN is not a JSON number")
def not_a_number(folder):
    edit(folder, "pretrain", "gpu_active_seconds", to=float("nan"))


@case("rejected", "schema", r"a number is too large")
def number_overflows(folder):
    file = folder / "entry.json"
    file.write_text(file.read_text().replace('"num_tokens": ', '"num_tokens": 1e999, "x": '))


@case("rejected", "schema", r"not valid JSON")
def number_of_a_million_digits(folder):
    file = folder / "entry.json"
    file.write_text(file.read_text().replace('"seed": ', f'"seed": {"9" * 100_000}'))


@case("rejected", "schema", r"entry.json is not valid JSON")
def not_utf_8(folder):
    (folder / "entry.json").write_bytes(b'{"name": "\xff\xfe"}')


@case("rejected", "files", r"entry.json has .* bytes, more than")
def entry_too_large(folder):
    edit(folder, "notes", to=["x" * 1000] * 300)


@case("rejected", "slug", r"slug 'other' is not the folder's name")
def slug_of_another(folder):
    edit(folder, "slug", to="other")


@case("rejected", "schema", r"slug: .*does not match")
def traversal_in_the_slug(folder):
    edit(folder, "slug", to="../../etc")


@case("rejected", "tier", r"cannot set tier 'verified'")
def verified_by_itself(folder):
    edit(folder, "tier", to="verified")


@case("rejected", "date", r"Invalid date 2026-02-30")
def date_that_is_none(folder):
    edit(folder, "date", to="2026-02-30")


@case("rejected", "date", r"2099-01-01 is in the future")
def date_in_the_future(folder):
    edit(folder, "date", to="2099-01-01")


@case("rejected", "date", r"is in the future")
def date_of_the_day_after_tomorrow(folder):
    edit(folder, "date", to=(TODAY + timedelta(days=2)).isoformat())


@case("flagged", "date", r"2021-09-22, the submission's, is 1206 days ago")
def date_of_the_benchmarks_paper(folder):
    edit(folder, "date", to="2021-09-22")


@case("flagged", "text", r"name looks like markup: <script>")
def script_in_the_name(folder):
    edit(folder, "name", to="<script>alert(1)</script>")


@case("flagged", "text", r"authors\[1\] looks like markup")
def link_in_an_author(folder):
    edit(folder, "authors", to=["A", "[B](javascript:alert(1))"])


@case("rejected", "text", r"name has an invisible character \(RIGHT-TO-LEFT OVERRIDE\)")
def text_direction_in_the_name(folder):
    edit(folder, "name", to="best \u202e tseb")


@case("rejected", "text", r"notes\[0\] has an invisible character \(U\+001B\)")
def terminal_escape_in_a_note(folder):
    edit(folder, "notes", to=["\x1b[2J all checks passed"])


@case("rejected", "schema", r"links.code: 'javascript:")
def link_that_is_a_script(folder):
    edit(folder, "links", "code", to="javascript:alert(1)")


@case("rejected", "schema", r"links.code: 'http://")
def link_without_tls(folder):
    edit(folder, "links", "code", to="http://example.org")


@case("rejected", "links", r"needs huggingface_revision")
def weights_without_revision(folder):
    edit(folder, "links", "huggingface", to="https://huggingface.co/a/b")


@case("flagged", "links", r"links.wandb points to wandb.ai.evil.example")
def link_to_a_lookalike(folder):
    edit(folder, "links", "wandb", to="https://wandb.ai.evil.example/run")


CASES = {
    f"link_to_{name}": (
        lambda folder, url=url: edit(folder, "links", "code", to=url), "schema",
        r"links.code: .* is not valid")
    for name, url in {
        "an_address": "https://127.0.0.1/x",
        "this_machine": "https://localhost/x",
        "a_dot": "https://.",
        "a_hyphen": "https://-",
        "an_empty_label": "https://a..b/",
        "a_number": "https://example.1",
    }.items()
} | {
    f"weights_at_{name}": (
        lambda folder, path=path: (
            edit(folder, "links", "huggingface", to=f"https://huggingface.co/{path}"),
            edit(folder, "links", "huggingface_revision", to="0123456789" * 4),
        ), "schema", r"links.huggingface: .* does not match")
    for name, path in {
        "a_fragment": "a/b#",
        "a_query": "a/b?x=",
        "another_revision": "a/b/tree/main",
        "a_branch_with_a_query": "a/b/tree/main?x=",
        "a_folder_above": "a/..",
    }.items()
}  # fmt: skip
CORPUS |= {name: Case(tamper, "rejected", *rest) for name, (tamper, *rest) in CASES.items()}


# ---- claims that nothing supports


@case("rejected", "log", r"a number is too large")
def loss_of_the_largest_number(folder):
    relog(folder, lambda lines: [{**line, "loss": 1.79e308} for line in lines])


@case("rejected", "schema", r"a number is too small")
def a_number_next_to_zero(folder):
    edit(folder, "pretrain", "gpu_active_seconds", to=5e-324)


@case("rejected", "text", r"name has an invisible character \(U\+FFFF\)")
def name_with_a_noncharacter(folder):
    edit(folder, "name", to="Model \uffff")


@case("rejected", "date", r"before the benchmark")
def older_than_the_benchmark(folder):
    edit(folder, "date", to="2019-01-01")


@case("rejected", "digests", r"git_commit 000000000000… is not a plausible SHA-256")
def commit_of_zeros(folder):
    edit(folder, "provenance", "git_commit", to="0" * 40)


@case("rejected", "digests", r"finetune.model_sha256 ababab")
def weights_of_two_letters(folder):
    edit(folder, "finetune", "model_sha256", to="ab" * 32)


@case("rejected", "price", r"usd_per_hour is 0")
def price_of_zero(folder):
    edit(folder, "hardware", "usd_per_hour", to=0)


@case("rejected", "positions", r"max_position_embeddings 64 is shorter than inputs of 128")
def position_table_too_short(folder):
    edit(folder, "model", "max_position_embeddings", to=64)


@case("flagged", "track", r"not in track 'small'.*a100-40gb has 40.0 GB, but the limit is 16")
def card_of_40_gb(folder):
    edit(folder, "hardware", "gpu", to="NVIDIA A100-SXM4-40GB")
    edit(folder, "hardware", "peak_tflops", to=312.0)


@case("flagged", "track", r"the log has a peak of 24.0 GB, but the limit is 16")
def more_memory_than_the_track_has(folder):
    relog(folder, lambda lines: [{**line, "peak_memory_bytes": 24 << 30} for line in lines])


@case("not done", "track", r"the log has no peak memory")
def log_without_peak_memory(folder):
    relog(folder, lambda lines: [{k: v for k, v in x.items() if k != "peak_memory_bytes"}
                                 for x in lines])  # fmt: skip


@case("flagged", "track", r"the memory of card 'Quantum 9000' is not known")
def unknown_card_is_in_no_track_of_one(folder):
    edit(folder, "hardware", "gpu", to="Quantum 9000")


@case("flagged", "splits", r"dev_mismatched.* scores .*: one of them is implausible")
def noise_as_a_split(folder):
    for number in range(3):
        rng = np.random.default_rng(number)
        path = prediction(folder, "mnli", number, "dev_mismatched")
        rows = gzip.decompress(path.read_bytes()).count(b"\n") - 1
        path.write_bytes(predictions_bytes(TASKS["mnli"], rng.integers(0, 3, rows)))


@case("flagged", "names", r"name resembles that of original")
def name_in_other_letters(folder):
    other = json.loads((folder.parent / "original" / "entry.json").read_text())["name"]
    letters = str.maketrans("aeoE", "\u0430\u0435\u043e\u0415")  # Cyrillic
    edit(folder, "name", to=other.translate(letters))


@case("flagged", "names", r"name resembles that of original")
def name_with_a_symbol_for_a_letter(folder):
    other = json.loads((folder.parent / "original" / "entry.json").read_text())["name"]
    edit(folder, "name", to=other.replace("l", "|").replace("e", "\u212e"))


@case("flagged", "copies", r"the weights equal those of original")
def weights_of_another_entry(folder):
    other = json.loads((folder.parent / "original" / "entry.json").read_text())
    edit(folder, "finetune", "model_sha256", to=other["finetune"]["model_sha256"])


# ---- the model and its pretraining

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


# ---- fine-tuning and predictions


@case("rejected", "predictions", r"is not a label of rte")
def swapped_predictions_of_two_tasks(folder):
    a, b = prediction(folder, "mrpc"), prediction(folder, "rte")
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    retext(a, lambda text: text.replace(b"not_entailment", b"not_equivalent"))
    retext(a, lambda text: text.replace(b"\tentailment", b"\tequivalent"))


@case("rejected", "rows", r"has \d+ rows, expected \d+")
def swapped_predictions_of_two_splits(folder):
    a, b = (prediction(folder, "mnli", split=split) for split in ("dev", "dev_mismatched"))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@case("flagged", "metrics", r"mnli: no run learned anything; check the mapping of labels")
def labels_in_another_order(folder):
    turn = {
        b"entailment": b"neutral",
        b"neutral": b"contradiction",
        b"contradiction": b"entailment",
    }
    for number in range(3):
        retext(
            prediction(folder, "mnli", number),
            lambda text: b"\n".join(
                b"\t".join((i, turn.get(w, w)))
                for i, _, w in (line.partition(b"\t") for line in text.splitlines())
            ) + b"\n",
        )  # fmt: skip


@case("flagged", "metrics", r"sst2: 100\.00 exceeds human performance")
def gold_labels_as_predictions(folder):
    gold = synthetic_gold(scale=SCALE).labels["sst2"]["dev"]
    prediction(folder, "sst2").write_bytes(predictions_bytes(TASKS["sst2"], gold))


@case("rejected", "seeds", r"rte has seed 1 twice")
def duplicated_seed(folder):
    rerun(folder, lambda lines: [
        {**x, "seed": 1} if (x["task"], x["seed"]) == ("rte", 2) else x for x in lines
    ])  # fmt: skip


@case("flagged", "seeds", r"rte_.*seed-3.* equals .*seed-2")
def one_run_copied_to_another_seed(folder):
    shutil.copy(prediction(folder, "rte", 1), prediction(folder, "rte", 2))


@case("flagged", "copies", r"equals original/predictions/cola")
def predictions_of_another_entry(folder):
    other = folder.parent / "original"
    shutil.copy(prediction(other, "cola"), prediction(folder, "cola"))


@case("flagged", "copies", r"equals original/predictions/sst2")
def predictions_of_another_entry_packed_anew(folder):
    text = gzip.decompress(prediction(folder.parent / "original", "sst2").read_bytes())
    prediction(folder, "sst2").write_bytes(gzip.compress(text, compresslevel=1, mtime=77))


@case("flagged", "protocol", r"rte: seeds 1, 2, 4, 5 at the chosen rate, expected the published")
def worst_seed_left_out(folder):
    prediction(folder, "rte", 2).unlink()
    rerun(folder, lambda lines: [x for x in lines if (x["task"], x["seed"]) != ("rte", 3)])


@case("flagged", "protocol", r"rte: seeds 1, 2, 3, 4, 77 at the chosen rate")
def lucky_seed(folder):
    rerun(folder, lambda lines: [
        {**x, "seed": 77} if (x["task"], x["seed"]) == ("rte", 5) else x for x in lines
    ])  # fmt: skip


@case("flagged", "protocol", r"max_length 512, not 128")
def longer_inputs(folder):
    edit(folder, "finetune", "max_length", to=512)


@case("flagged", "protocol", r"num_trials 1,000,000,000,000,000: more than anybody runs")
def trials_without_number(folder):
    edit(folder, "finetune", "num_trials", to=10**15)


@case("rejected", "protocol", r"num_trials 2, but one task has 5 runs")
def trials_understated(folder):
    edit(folder, "finetune", "num_trials", to=2)


@case("rejected", "protocol", r"learning rate 0\.01, which is not in the grid")
def rate_outside_the_grid(folder):
    rerun(folder, lambda lines: [{**lines[0], "learning_rate": 0.01}, *lines[1:]])


def chosen_files(folder: Path, task: str) -> list[Path]:
    """The files that chose a task's learning rate, the chosen one first."""
    rate = json.loads((folder / "entry.json").read_text())["finetune"]["chosen"][task]
    paths = [prediction(folder, task, number, "choice") for number in range(4)]
    return sorted(paths, key=lambda path: f"lr-{rate:g}_" not in path.name)


def chosen_file(folder: Path, is_best: bool) -> Path:
    """A file that chose RTE's learning rate: the best, or one of the others."""
    return chosen_files(folder, "rte")[0 if is_best else 1]


def write_answers(path: Path, labels: np.ndarray, *, wrong: float) -> None:
    """Write MNLI's labels, but for a share of the rows, which the file's name decides."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    rows = rng.choice(len(labels), round(wrong * len(labels)), replace=False)
    answers = labels.copy()
    answers[rows] = (answers[rows] + 1) % 3
    path.write_bytes(predictions_bytes(TASKS["mnli"], answers))


@case("flagged", "choice", r"mnli: dev scores 3\d\.\d points more than the part of train")
def dev_labels_with_noise(folder):
    gold = synthetic_gold(scale=SCALE)
    for number in range(3):
        path = prediction(folder, "mnli", number)
        write_answers(path, gold.labels["mnli"]["dev"], wrong=0.02)
    for number, path in enumerate(chosen_files(folder, "mnli")):
        write_answers(path, gold.choices["mnli"].labels, wrong=0.4 if number == 0 else 0.5)


@case("rejected", "choice", r"rte: learning rate .* was chosen, but .* has the best score")
def rate_chosen_on_dev(folder):
    best, other = chosen_file(folder, True), chosen_file(folder, False)
    contents = best.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    best.write_bytes(contents[1])


@case("flagged", "choice", r"rte: rates .* and .* gave the same answers")
def one_choice_for_every_rate(folder):
    best = chosen_file(folder, True).read_bytes()
    for number in range(4):
        prediction(folder, "rte", number, "choice").write_bytes(best)


@case("not done", "choice", r"cola: every run that chose its learning rate has constant answers")
def choice_of_constant_answers(folder):
    for path in chosen_files(folder, "cola"):
        copy_answers(path, path, "cola", np.zeros_like)


@case("rejected", "from scratch", r"from_scratch, but train.init_from is google/electra")
def weights_of_another_model(folder):
    reconfigure(folder, "train", "init_from", to="google/electra-small-discriminator")


@case("rejected", "protocol", r"no run is of pretraining seed \d+, whose log this is")
def runs_of_a_pretraining_without_a_log(folder):
    rerun(folder, lambda lines: [{**x, "pretraining_seed": 777} for x in lines])


@case("not done", "protocol", r"the log of pretraining seed 777 is missing")
def one_run_of_another_pretraining(folder):
    rerun(folder, lambda lines: [{**lines[0], "pretraining_seed": 777}, *lines[1:]])


@case("rejected", "seeds", r"cola has seed 1 twice")
def a_seed_twice_by_naming_its_pretraining(folder):
    path, copy = prediction(folder, "cola"), folder / "predictions/cola_again.tsv.gz"
    shutil.copy(path, copy)
    main = json.loads((folder / "entry.json").read_text())["pretrain"]["seed"]
    same = {"pretraining_seed": main, "predictions": {"dev": "predictions/cola_again.tsv.gz"}}
    rerun(folder, lambda lines: [*lines, *({**x, **same} for x in lines if path.name in str(x))])


@case("rejected", "sizes", r"model.vocab_size of '\w+' is missing")
def parameters_that_nobody_can_count(folder):
    edit(folder, "model", "vocab_size", to=None)
    edit(folder, "model", "num_parameters", to=1000)
    reconfigure(folder, "model", "vocab_size", to=None)


@case("rejected", "price", r"hardware.usd_per_hour 1e-09 is less than 0.001; expected null")
def price_next_to_zero(folder):
    edit(folder, "hardware", "usd_per_hour", to=1e-9)


@case("not done", "choice", r"rte: the predictions that chose its learning rate are missing")
def choice_left_out(folder):
    for number in range(4):
        prediction(folder, "rte", number, "choice").unlink()
    rerun(folder, lambda lines: [x for x in lines if x["task"] != "rte" or x["seed"]])


@case("not done", "choice", r"rte: the predictions that chose its learning rate are missing")
def choice_among_fewer_rates(folder):
    path = chosen_file(folder, False)
    rerun(folder, lambda lines: [x for x in lines if path.name not in str(x["predictions"])])
    path.unlink()


@case("not done", "choice", r"rte: its learning rate was chosen on other rows of train")
def choice_on_other_rows(folder):
    edit(folder, "finetune", "choice_sha256", "rte", to="0123456789abcdef" * 4)


@case("rejected", "choice", r"rte_.*choice.tsv.gz has 39 rows, expected 40")
def choice_with_a_row_missing(folder):
    retext(chosen_file(folder, True), lambda text: text[: text[:-1].rindex(b"\n") + 1])


@case("rejected", "runs", r"rte needs \('dev',\)")
def run_of_dev_and_choice_at_once(folder):
    rerun(folder, lambda lines: [
        {**x, "predictions": {**x["predictions"], "choice": "predictions/x.tsv.gz"}}
        if (x["task"], x["seed"]) == ("rte", 1) else x for x in lines
    ])  # fmt: skip


@case("flagged", "metrics", r"rte is missing, so AVG cannot be computed")
def task_left_out(folder):
    for path in (folder / "predictions").glob("rte_*"):
        path.unlink()
    rerun(folder, lambda lines: [x for x in lines if x["task"] != "rte"])


@case("rejected", "rows", r"has 103 rows, expected 104")
def row_missing(folder):
    retext(prediction(folder, "cola"), lambda text: text[: text[:-1].rindex(b"\n") + 1])


@case("rejected", "predictions", r"indices are not 0, 1, 2")
def rows_in_another_order(folder):
    retext(prediction(folder, "cola"), lambda text: text.replace(b"\n3\t", b"\n5\t", 1))


@case("rejected", "predictions", r"'maybe' is not a label of cola")
def label_that_is_none(folder):
    retext(prediction(folder, "cola"), lambda t: t.replace(b"\tacceptable", b"\tmaybe", 1))


@case("rejected", "predictions", r"'inf' is not a number as JSON writes it")
def score_that_is_infinite(folder):
    retext(prediction(folder, "stsb"), lambda t: t[: t[:-1].rindex(b"\t") + 1] + b"inf\n")


@case("rejected", "predictions", r"is not a number as JSON writes it")
def digits_of_another_script(folder):
    retext(prediction(folder, "stsb"), lambda t: t[:-1] + "٣\n".encode())


@case("rejected", "predictions", r"a line that is not index<TAB>prediction|no table")
def lines_run_together(folder):
    retext(prediction(folder, "cola"), lambda text: text.replace(b"\n4\t", b"\t4\t", 1))


@case("rejected", "predictions", r"is not a gzip file, or is damaged")
def not_gzip(folder):
    prediction(folder, "cola").write_bytes(b"index\tprediction\n0\tacceptable\n")


@case("rejected", "predictions", r"is truncated")
def gzip_cut_off(folder):
    path = prediction(folder, "cola")
    path.write_bytes(path.read_bytes()[:-20])


@case("rejected", "predictions", r"has data after its end")
def gzip_with_a_second_member(folder):
    path = prediction(folder, "cola")
    path.write_bytes(path.read_bytes() + gzip.compress(b"more"))


def zeros(megabytes: int) -> bytes:
    """That many zeros, gzipped; the end of the stream is left out, nobody gets there."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, block = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + block * (megabytes - 1)


@case("rejected", "predictions", r"unpacks to over .* bytes")
def gigabyte_of_zeros(folder):
    prediction(folder, "cola").write_bytes(zeros(900))


@case("rejected", "files", r"bytes, more than 1,048,576")
def two_gigabytes_of_zeros(folder):
    prediction(folder, "cola").write_bytes(zeros(2048))


# ---- files


@case("rejected", "runs", r"predictions.dev: '\.\./\.\./original")
def path_traversal_in_a_file_name(folder):
    rerun(folder, lambda lines: [
        {**lines[0], "predictions": {"dev": "../../original/predictions/x.tsv.gz"}}, *lines[1:]
    ])  # fmt: skip


@case("rejected", "files", r"is not a regular file \(a link\?\)")
def link_to_a_file_outside(folder):
    path = prediction(folder, "cola")
    path.unlink()
    path.symlink_to("/etc/passwd")


@case("rejected", "files", r"is not a folder")
def link_to_a_folder_outside(folder):
    shutil.rmtree(folder / "predictions")
    (folder / "predictions").symlink_to("/etc")


@case("rejected", "files", r"is not a regular file")
def pipe_that_never_ends(folder):
    (folder / "train_log.jsonl").unlink()
    os.mkfifo(folder / "train_log.jsonl")


@case("rejected", "files", r"'?setup.py'? is not a file of an entry")
def code_beside_it(folder):
    (folder / "setup.py").write_text("raise SystemExit('executed')")


@case("rejected", "files", r"has an unexpected name for its folder")
def name_with_an_escape(folder):
    (folder / "predictions/\x1b[31m.tsv.gz").write_bytes(b"")


@case("rejected", "files", r"more than 1,000 files")
def too_many_files(folder):
    for number in range(1_001):
        (folder / f"predictions/{number}.tsv.gz").touch()


@case("rejected", "runs", r"does not belong to a run")
def file_of_no_run(folder):
    shutil.copy(prediction(folder, "cola"), folder / "predictions/extra.tsv.gz")


@case("rejected", "runs", r"already belongs to another run")
def one_file_for_two_runs(folder):
    rerun(folder, lambda lines: [
        lines[0], {**lines[1], "predictions": lines[0]["predictions"]}, *lines[2:]
    ])  # fmt: skip


@case("rejected", "runs", r"seed-1_dev.tsv.gz is missing")
def file_missing(folder):
    prediction(folder, "cola").unlink()


@case("rejected", "runs", r"runs.jsonl is missing")
def runs_missing(folder):
    (folder / "runs.jsonl").unlink()


@case("rejected", "runs", r"last line has no line break")
def runs_cut_off(folder):
    file = folder / "runs.jsonl"
    file.write_text(file.read_text()[:-30])


@case("rejected", "runs", r"more than 300 lines")
def runs_without_end(folder):
    file = folder / "runs.jsonl"
    file.write_text(file.read_text() + "{}\n" * 1000)


@case("rejected", "files", r"train_log.jsonl has .* bytes, more than")
def log_of_a_gigabyte(folder):
    with (folder / "train_log.jsonl").open("r+b") as stream:
        stream.truncate(1 << 30)  # sparse


@case("rejected", "log", r"more than 50,000 lines")
def log_of_a_million_lines(folder):
    (folder / "train_log.jsonl").write_text("{}\n" * 1_000_000)


@case("rejected", "files", r"entry.json is missing")
def nothing_at_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@case("rejected", "files", r"tier 'reported' has entry.json only")
def reported_with_predictions(folder):
    entry = json.loads((folder / "entry.json").read_text())
    for key in ("data", "pretrain", "hardware", "energy", "finetune", "provenance"):
        del entry[key]
    entry |= {"tier": "reported", "reported": {"source": "me", "scores": {}, "average": 90.0}}
    (folder / "entry.json").write_text(json.dumps(entry))


def _only_reported(folder, **reported):
    reported_with_predictions(folder)
    for path in ("runs.jsonl", "train_log.jsonl"):
        (folder / path).unlink()
    shutil.rmtree(folder / "predictions")
    edit(folder, "reported", to={"source": "arXiv", "average": 80.0, "scores": {}, **reported})


@case("rejected", "reported", r"average 80\.0 differs from the scores' mean 70\.00")
def reported_average_that_is_none(folder):
    _only_reported(folder, scores=dict.fromkeys(TASKS, 70.0))


@case("rejected", "reported", r"average 80\.0 differs from the scores' mean 70\.00")
def reported_average_that_is_none_of_five_tasks(folder):
    _only_reported(folder, protocol="tiny-v1", scores=dict.fromkeys(TRACKS["tiny"].tasks, 70.0))


def as_reference(folder):
    """Keep what an entry of random weights has: its predictions and how they were made."""
    entry = json.loads((folder / "entry.json").read_text())
    for key in ("data", "pretrain", "hardware", "energy", "provenance"):
        del entry[key]
    entry |= {"tier": "reference", "finetune": entry["finetune"] | {"model_sha256": None}}
    (folder / "entry.json").write_text(json.dumps(entry))
    (folder / "train_log.jsonl").unlink()


@case("flagged", "metrics", r"cola: \d\d\.\d is more than random weights reach")
def reference_that_was_trained(folder):
    as_reference(folder)


@case("rejected", "files", r"tier 'reference' is of random weights and has no train_log")
def reference_with_a_log(folder):
    log = (folder / "train_log.jsonl").read_bytes()
    as_reference(folder)
    (folder / "train_log.jsonl").write_bytes(log)


@case("rejected", "schema", r"reported: this tier has none")
def reference_that_quotes_scores(folder):
    as_reference(folder)
    edit(folder, "reported", to={"source": "me", "scores": {}, "average": 90.0})


@case("rejected", "schema", r"pretrain: this tier has none")
def reference_with_a_pretraining(folder):
    entry = json.loads((folder / "entry.json").read_text())
    as_reference(folder)
    edit(folder, "pretrain", to=entry["pretrain"])


@case("rejected", "sizes", r"num_parameters 1, but the sizes give")
def reference_of_one_parameter(folder):
    as_reference(folder)
    edit(folder, "model", "num_parameters", to=1)


@case("rejected", "sizes", r"random weights are from_scratch")
def reference_with_a_teacher(folder):
    as_reference(folder)
    edit(folder, "model", "distilled_from", to="GPT-4")


@case("rejected", "protocol", r"no run is of pretraining seed None, since random weights have none")
def reference_with_a_pretraining_seed(folder):
    as_reference(folder)
    rerun(folder, lambda lines: [{**x, "pretraining_seed": 5} for x in lines])


@case("rejected", "protocol", r"a reference needs the runs of a track's protocol: protocol best")
def reference_of_another_protocol(folder):
    as_reference(folder)
    edit(folder, "finetune", "protocol", to="best")


@case("rejected", "choice", r"learning rate .* was chosen, but")
def reference_with_the_best_rate_on_dev(folder):
    rate_chosen_on_dev(folder)
    as_reference(folder)


@case("rejected", "reported", r"average 99\.9 differs from the scores' mean, which is .* to 75\.00")
def reported_average_that_the_known_scores_do_not_allow(folder):
    _only_reported(folder, scores={"cola": -100.0}, average=99.9)


@case("rejected", "reported", r"average -30\.0 differs from the scores' mean, which is -25\.00 to")
def reported_average_below_what_is_possible(folder):
    _only_reported(folder, scores={}, average=-30.0)


@case("rejected", "reported", r"sst2 -50\.0 is negative, but it is an accuracy")
def reported_accuracy_below_zero(folder):
    _only_reported(folder, scores={"sst2": -50.0}, average=50.0)


@case("flagged", "reported", r"cola 100\.0 is above 80\.0: no published model is")
def reported_scores_that_are_perfect(folder):
    _only_reported(folder, scores=dict.fromkeys(TASKS, 100.0), average=100.0)


@case("flagged", "reported", r"average 99\.0 is above 92\.8: no published model is")
def reported_average_alone_above_every_model(folder):
    _only_reported(folder, average=99.0, protocol="tiny-v1")


@case("rejected", "reported", r"num_parameters 1, but the sizes give")
def reported_model_of_one_parameter(folder):
    _only_reported(folder)
    edit(folder, "model", "num_parameters", to=1)


@case("flagged", "reported", r"rte 69\.09 is not k/277 for any k")
def reported_accuracy_that_no_count_gives(folder):
    _only_reported(folder, scores={"rte": 69.09, "sst2": 90.37})


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(1 << 16)


@case("rejected", "schema", r"entry.json is not valid JSON")
def noise_as_entry(folder):
    (folder / "entry.json").write_bytes(noise(0))


@case("rejected", "runs", r"runs.jsonl")
def noise_as_runs(folder):
    (folder / "runs.jsonl").write_bytes(noise(1) + b"\n")


@case("rejected", "log", r"train_log.jsonl")
def noise_as_log(folder):
    (folder / "train_log.jsonl").write_bytes(noise(2) + b"\n")


@case("rejected", "predictions", r"is not a gzip file, or is damaged")
def noise_as_predictions(folder):
    path = prediction(folder, "cola")
    path.write_bytes(path.read_bytes()[:60] + noise(3))


# ---- misleading numbers and texts


def rewrite(old: str, new: str):
    """A tampering of the text of entry.json, which must have what it replaces."""

    def tamper(folder: Path) -> None:
        file = folder / "entry.json"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    return tamper


def entry_is(content: bytes):
    return lambda folder: (folder / "entry.json").write_bytes(content)


def lined(name: str, line: bytes):
    """A tampering that adds a line to a .jsonl."""

    def tamper(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(line + b"\n")

    return tamper


def answered(task: str, old: bytes, new: bytes):
    """A tampering of the text of a task's first predictions."""

    def change(text: bytes) -> bytes:
        assert old in text
        return text.replace(old, new)

    return lambda folder: retext(prediction(folder, task), change)


def packed(task: str, content: bytes):
    return lambda folder: prediction(folder, task).write_bytes(content)


JSON_MUST = r"entry.json is not valid JSON"
CASES = {
    "infinity": (rewrite('"kwh": ', '"kwh": Infinity, "x": '), "schema",
                 r"Infinity is not a JSON number"),
    "number_of_400_digits": (rewrite('"seed": ', f'"seed": {"9" * 400}, "x": '), "schema",
                             r"a number is too large"),
    "byte_order_mark": (
        lambda folder: (folder / "entry.json").write_text(
            "\ufeff" + (folder / "entry.json").read_text()), "schema", JSON_MUST),
    "empty_entry": (entry_is(b""), "schema", JSON_MUST),
    "null_as_entry": (entry_is(b"null"), "schema", r"schema_version None"),
    "fraction_for_a_count": (
        lambda folder: edit(folder, "pretrain", "num_steps", to=float), "schema",
        r"num_steps: .*\.0 is not of type 'integer'"),
    "schema_version_with_a_fraction": (
        lambda folder: edit(folder, "schema_version", to=1.0), "schema", r"schema_version 1\.0"),
    "negative_zero": (
        lambda folder: edit(folder, "pretrain", "gpu_active_seconds", to=-0.0), "schema",
        r"gpu_active_seconds: -0\.0 is less than or equal to the minimum"),
    "truth_for_a_number": (
        lambda folder: edit(folder, "pretrain", "wall_seconds", to=True), "schema",
        r"wall_seconds: True is not of type 'number'"),
    "half_of_a_surrogate_pair": (
        rewrite('"name": "', '"name": "\\ud83d'), "text", r"invisible character \(U\+D83D\)"),
    "line_break_behind_a_hash": (
        lambda folder: edit(folder, "provenance", "config_digest", to=lambda x: x + "\n"),
        "schema", r"config_digest: .* does not match"),
    "line_break_behind_a_key": (
        lambda folder: edit(folder, "provenance", "config", "train\n", to=1), "schema",
        r"does not match"),
    "slug_in_capitals": (
        lambda folder: edit(folder, "slug", to="Good"), "schema", r"slug: 'Good' does not match"),
    "name_of_a_letter_that_nobody_sees": (
        lambda folder: edit(folder, "name", to="\u3164"), "text",
        r"invisible character \(HANGUL FILLER\)"),
    "name_of_a_selector_that_selects_nothing": (
        lambda folder: edit(folder, "name", to="\ufe0f"), "text", r"name is blank"),
    "author_of_a_mongolian_selector": (
        lambda folder: edit(folder, "authors", to=["\u180b"]), "text", r"authors\[0\] is blank"),
    "note_with_a_reserved_invisible_character": (
        lambda folder: edit(folder, "notes", to=["a\u2065"]), "text",
        r"notes\[0\] has an invisible character \(U\+2065\)"),
    "name_of_a_note_that_nobody_sees": (
        lambda folder: edit(folder, "name", to="\U0001d159"), "text",
        r"invisible character \(MUSICAL SYMBOL NULL NOTEHEAD\)"),
    "name_of_spaces": (
        lambda folder: edit(folder, "name", to="\u2003\u200d "), "text", r"name is blank"),
    "run_with_a_seed_of_its_own_type": (
        lambda folder: rerun(folder, lambda lines: [{**lines[0], "seed": 1.0}, *lines[1:]]),
        "runs", r"seed: 1\.0 is not of type 'integer'"),
    "run_on_a_line_without_end": (
        lined("runs.jsonl", b"[" + b"1," * 200_000 + b"1]"), "runs",
        r"a line of more than 4,096 bytes"),
    "run_that_is_no_object": (lined("runs.jsonl", b"7"), "runs", r"7 is not of type 'object'"),
    "log_on_a_line_without_end": (
        lined("train_log.jsonl", b"[" + b"{}," * 2_000_000 + b"{}]"), "log",
        r"a line of more than 4,096 bytes"),
    "log_of_no_loss": (
        lined("train_log.jsonl", b'{"loss": NaN}'), "log", r"NaN is not a JSON number"),
    "log_with_half_steps": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "step": x["step"] / 1} for x in lines]), "log", r"not the keys and types"),
    "log_of_astronomic_times": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "seconds": x["seconds"] * 1e300} for x in lines]), "log",
        r"a number is too large"),
    "log_of_astronomic_throughput": (
        lambda folder: relog(folder, lambda lines: [
            {**x, "tokens_per_second": x["tokens_per_second"] and 1e308} for x in lines]), "log",
        r"a number is too large"),
    "ramp_of_astronomic_size": (
        lambda folder: edit(folder, "pretrain", "ramps", to=[
            {"num_steps": 10**15, "global_batch_size": 10**15, "sequence_length": 10**15}]),
        "tokens", r"steps × batch × length is"),
    "line_ends_of_windows": (
        answered("cola", b"\n", b"\r\n"), "predictions", r"is not a table of index<TAB>prediction"),
    "label_with_a_carriage_return": (
        answered("cola", b"acceptable\n", b"acceptable\r\n"), "predictions",
        r"'acceptable.' is not a label of cola"),
    "score_as_python_writes_it": (
        answered("stsb", b"\n1\t", b"\n1\t1_"), "predictions",
        r"is not a number as JSON writes it"),
    "score_of_a_million_digits": (
        answered("stsb", b"\n1\t", b"\n1\t" + b"1" * 3_000), "predictions",
        r"is not a number as JSON writes it"),
    "score_beyond_all_others": (
        answered("stsb", b"\n1\t", b"\n1\t9e99\n1\t"), "predictions", r"indices|beyond"),
    "index_with_a_zero_before_it": (
        answered("cola", b"\n7\t", b"\n07\t"), "predictions", r"indices are not 0, 1, 2"),
    "one_endless_line": (
        packed("cola", gzip.compress(b"index\tprediction\n" + b"0" * 40_000)), "predictions",
        r"is not a table of index<TAB>prediction"),
    "empty_predictions": (packed("cola", b""), "predictions", r"is truncated"),
    "gzip_of_nothing": (packed("cola", gzip.compress(b"")), "predictions", r"is not a table"),
    "gzip_of_ten_thousand_members": (
        packed("cola", gzip.compress(b"") * 10_000), "predictions", r"has data after its end"),
    "gzip_with_a_wrong_sum": (
        lambda folder: prediction(folder, "cola").write_bytes(
            prediction(folder, "cola").read_bytes()[:-8] + bytes(8)), "predictions",
        r"is not a gzip file, or is damaged"),
    "folder_for_a_file": (
        lambda folder: (folder / "predictions/more.tsv.gz").mkdir(), "files",
        r"is not a regular file"),
    "file_for_a_folder": (
        lambda folder: (shutil.rmtree(folder / "predictions"),
                        (folder / "predictions").write_bytes(b"")), "files", r"is not a folder"),
    "name_that_is_no_text": (
        lambda folder: (folder / os.fsdecode(b"predictions/\xff.tsv.gz")).touch(), "files",
        r"has an unexpected name for its folder"),
    "link_to_itself": (
        lambda folder: (folder / "predictions/more.tsv.gz").symlink_to("more.tsv.gz"), "files",
        r"is not a regular file"),
}  # fmt: skip
CORPUS |= {name: Case(tamper, "rejected", *rest) for name, (tamper, *rest) in CASES.items()}


@case("flagged", "text", r"name has too many combining marks")
def letter_under_a_pile_of_marks(folder):
    edit(folder, "name", to="Z" + "\u0335\u0316" * 20)


@case("flagged", "text", r"name has too many combining marks")
def pile_of_marks_with_joiners_between(folder):
    edit(folder, "name", to="Z" + "\u0335\u0316\u0335\u0316\u200d" * 20)


@case("flagged", "text", r"notes\[0\] has too many combining marks")
def row_of_vowel_signs(folder):
    edit(folder, "notes", to=["\u0915" + "\u093e" * 60])


@case("flagged", "seeds", r"rte_.*seed-3.* equals .*seed-2")
def hard_link_to_another_seed(folder):
    prediction(folder, "rte", 2).unlink()
    os.link(prediction(folder, "rte", 1), folder / "predictions/x")
    (folder / "predictions/x").rename(prediction(folder, "rte", 2))


def copy_answers(source: Path, target: Path, task: str, change) -> None:
    """Write a file's answers, changed, to another file."""
    text = source.read_bytes()
    split = source.name.rpartition("_")[2].removesuffix(".tsv.gz")
    answers = change(parse_predictions(text, source.name, TASKS[task], split))
    target.write_bytes(predictions_bytes(TASKS[task], answers))


def first_flipped(num: int):
    """A change of the answers of the first rows of a task with two classes."""
    return lambda answers: np.where(np.arange(len(answers)) < num, 1 - answers, answers)


@case("flagged", "seeds", r"cola_.*seed-2_dev.* equals .*seed-1_dev.* except for 2 rows")
def one_run_copied_but_for_two_rows(folder):
    first, second = (prediction(folder, "cola", number) for number in range(2))
    copy_answers(first, second, "cola", first_flipped(2))


@case("flagged", "seeds", r"stsb_.*seed-2_dev.* equals .*seed-1_dev.* except for noise")
def one_run_copied_with_noise(folder):
    first, second = (prediction(folder, "stsb", number) for number in range(2))
    signs = np.random.default_rng(0).choice([-0.02, 0.02], 150)
    copy_answers(first, second, "stsb", lambda answers: answers + signs[: len(answers)])


@case("flagged", "choice", r"cola: rates .* and .* gave the same answers except for 1 rows")
def one_choice_but_for_a_row(folder):
    best, *others = chosen_files(folder, "cola")
    gold = synthetic_gold(scale=SCALE).choices["cola"].labels

    def worse(answers):
        row = np.flatnonzero(answers == gold)[0]
        return np.where(np.arange(len(answers)) == row, 1 - answers, answers)

    for path in others:
        copy_answers(best, path, "cola", worse)


@case("flagged", "seeds", r"mnli_.*seed-3_dev.* equals .*seed-2_dev.* except for 1 rows")
def one_run_copied_but_for_a_row(folder):
    text = gzip.decompress(prediction(folder, "mnli", 1).read_bytes())
    end = text[:-1].rindex(b"\t") + 1
    other = b"neutral\n" if text[end:] != b"neutral\n" else b"entailment\n"
    prediction(folder, "mnli", 2).write_bytes(gzip.compress(text[:end] + other))


@case("flagged", "metrics", r"rte: no run learned anything")
def constant_answers(folder):
    for number in range(5):
        retext(
            prediction(folder, "rte", number),
            lambda text: text.replace(b"not_entailment", b"entailment"),
        )


@case("rejected", "predictions", r"is not a gzip file, or is damaged")
def damaged_file_that_ends_like_anothers(folder):
    """Whoever compares the two must not stumble over it."""
    other = prediction(folder.parent / "original", "cola").read_bytes()
    prediction(folder, "cola").write_bytes(noise(4)[:100] + other[-8:])
