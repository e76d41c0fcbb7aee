"""Cases of misleading numbers, texts and names."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np

from tests.leaderboard.synthetic import synthetic_gold
from tests.leaderboard.tampered.base import (
    CORPUS,
    SCALE,
    Case,
    case,
    chosen_files,
    copy_answers,
    edit,
    noise,
    prediction,
    relog,
    rerun,
    retext,
)


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
