"""Cases of the runs of fine-tuning, their predictions, and the choice of a learning rate."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

import numpy as np

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import predictions_bytes
from tests.leaderboard.synthetic import synthetic_gold
from tests.leaderboard.tampered.base import (
    MIB,
    SCALE,
    case,
    chosen_files,
    copy_answers,
    edit,
    prediction,
    reconfigure,
    rerun,
    retext,
)


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
