"""Cases of entry.json: its form, its schema, and claims that nothing supports."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta

import numpy as np

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import predictions_bytes
from tests.leaderboard.tampered.base import CORPUS, TODAY, Case, case, edit, prediction, relog


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


@case("rejected", "digests", r"git_commit 000000000000… is not a plausible digest")
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
