"""Cases of entries without a pretraining: quoted scores, and references of random weights."""

from __future__ import annotations

import json
import shutil

from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.track_table import TRACKS
from tests.leaderboard.tampered.base import case, edit
from tests.leaderboard.tampered.finetuning import rate_chosen_on_dev


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
