"""Cases of files and tiers: links, sizes, what is missing, and what does not belong there."""

from __future__ import annotations

import os
import shutil

from tests.leaderboard.tampered.base import case, noise, prediction, rerun


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
