"""Make an entry of a track with one command: pretrain, export, glue, entry.

tiny: at most 2e14 training FLOPs, about half an hour on two CPU cores, GLUE included; five tasks.
small: one card of 16 GB, eight tasks; days. The run trains until the track's FLOPs are used up,
by the model's own count, on any corpus that 'smallbench prepare' wrote. It keeps checkpoints at a
quarter and a half of the budget. Every value of the recipe can be overridden as
--SECTION.KEY=VALUE.

    OUT/run        the pretraining, with its loss curve
    OUT/export     the encoder for from_pretrained
    OUT/glue       the fine-tuning runs of the track's protocol
    OUT/entry/SLUG the entry, ready for submissions/

Each part that is complete is skipped, so the same command continues after Ctrl-C, SIGTERM (exit
code 75) or a crash, and makes the same entry. --random_weights fine-tunes random weights of the
recipe's shape instead: the reference that pretraining must beat, which is not ranked.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smallbench.checkpoints.record import RECORD_NAME, read_record
from smallbench.config import Location, check, command, option, override_all, require
from smallbench.errors import ConfigError, DataError, SmallbenchError
from smallbench.files import exclusive_lock, read_json
from smallbench.glue.config import FinetuneConfig
from smallbench.glue.tasks import task_named
from smallbench.jobs.base import (
    Job,
    StopOptions,
    announce,
    author_of,
    fitted_and_steps,
    require_accepted,
    start,
)
from smallbench.leaderboard.track_table import TRACKS, Track
from smallbench.recipes import recipe_config
from smallbench.stop import Stop
from smallbench.storage.config import StorageConfig
from smallbench.templates import from_template
from smallbench.train.config import PretrainConfig

if TYPE_CHECKING:
    from smallbench.glue.pretrained import PretrainedEncoder
    from smallbench.glue.task_data import TaskData

MARGIN = 0.01
"""Fraction of the limit that is left free. A run ends with the step that reaches its budget, and
the board counts the expected masked tokens, the run the drawn ones (0.3 % fewer)."""


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig, StopOptions):
    """Flags of `smallbench enter`."""

    track: Literal["tiny", "small"] = option(help="track of the leaderboard")
    recipe: str = option(help="name of a recipe ('smallbench recipes' lists them), or FILE.py:NAME")
    data: Location = option(help="directory or s3:// URL that 'smallbench prepare' wrote")
    glue: Location = option(
        help="folder in the official TSV layout, hub, or samples: generated samples, for a trial"
    )
    out: Path = option(help="output directory; the same one continues an interrupted run")
    seed: int = option(1, help="seed of the pretraining: weights, data order, masks, dropout")
    flops: float | None = option(
        None, help="training FLOPs, fewer than the track's limit; none: the limit, less 1 %"
    )
    random_weights: bool = option(
        False, help="no pretraining: the reference of random weights, which is not ranked"
    )
    authors: tuple[str, ...] = option(
        ("anonymous",), help="authors of the entry", metavar="NAME[,NAME…]"
    )
    license: str = option("CC0-1.0", help="licence of the entry and its weights")
    contact: str | None = option(None, help="how to reach the authors, public")
    contains_glue: bool = option(
        False, help="whether text of GLUE's dev or test sets is in the corpus; then it is rejected"
    )
    name: str | None = option(
        None, help="name of the entry; none: the recipe's, and the seed if it is not 1"
    )
    code: str | None = option(None, help="https link to the code")
    notes: tuple[str, ...] = option((), help="remark for readers of the entry")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "", flops="> 0", seed=">= 0")


def config(options: Options) -> PretrainConfig:
    """The recipe with the track's budget; of random weights, no step of it."""
    recipe = recipe_config(options.recipe)
    if options.random_weights:
        return override_all(recipe, {"train.max_steps": 0, "schedule.along": "steps"})
    limit = TRACKS[options.track].max_train_flops
    assert limit is not None
    flops = (1 - MARGIN) * limit
    return override_all(
        recipe, {"train.max_flops": flops, "train.max_hours": None, "schedule.along": "flops"}
    )


def slug(options: Options, config: PretrainConfig) -> str:
    """Return the name of the entry's folder."""
    recipe = re.sub(r"[^a-z0-9]+", "-", Path(options.recipe).name.replace(".py", "").lower())
    kind = "-random" if options.random_weights else ""
    return f"{recipe.strip('-')}{kind}-seed-{config.train.seed}"


def check_request(options: Options, config: PretrainConfig, track: Track) -> None:
    """Raise `ConfigError` for what the board would reject after all of the training."""
    from smallbench.leaderboard.folder import is_allowed

    flops, limit = config.train.max_flops, track.max_train_flops
    assert limit is not None
    most = (1 - MARGIN) * limit
    if not options.random_weights and (flops is None or flops > most):
        flag = "--train.max_flops" if options.flops is None else "--flops"
        raise ConfigError(
            f"{flag}={'none' if flops is None else f'{flops:g}'} is too much for the "
            f"{limit:g} training FLOPs of track {track.name}; expected at most {most:g}, since the "
            "last step may go over"
        )
    name = slug(options, config)
    require(is_allowed("slug", name), "the name of the entry's folder", name, "1 to 64 letters, "
            "digits and inner dashes; it is made of the recipe's name and the seed")  # fmt: skip
    author_of(options, "")


def run(options: Options, config: PretrainConfig) -> None:
    """Run the missing parts, and print the entry's checks and scores."""
    from smallbench.data.transfer import local_corpus
    from smallbench.glue.samples import glue_source
    from smallbench.leaderboard.gold import read_gold

    track = TRACKS[options.track]
    check_request(options, config, track)
    busy = f"another process makes the entry in {options.out}; wait for it, or end it"
    with options.stop() as stop, glue_source(options.glue) as glue:
        tasks = read_tasks(track, glue)  # refused before half an hour of pretraining
        if any(task.is_sample for task in tasks):
            announce("a trial: the rows are generated samples, whose scores the board rejects")
        data = local_corpus(options.data, options, stop=stop)
        if not options.random_weights:
            config = fitted_to_steps(config, data)
        with exclusive_lock(options.out / "lock", busy):
            train(config, data=data, out=options.out, stop=stop)
            fine_tune(options, config, tasks, track, stop)
            folder = write_entry(options, config)
            require_accepted(folder, read_gold(glue))
    print(ending(options, config, folder, track))


def read_tasks(track: Track, glue: str) -> list[TaskData]:
    """Read the track's tasks. Raises `DataError` for rows that are not the official ones."""
    from smallbench.glue.protocols import protocol_named
    from smallbench.glue.task_data import load_task

    tasks = [load_task(task_named(name), glue) for name in protocol_named(track.protocol).tasks]
    for data in tasks:
        if data.unofficial:
            raise DataError(f"an entry needs the official rows, but {data.unofficial[0]}")
    return tasks


def fitted_to_steps(config: PretrainConfig, data: Path) -> PretrainConfig:
    """Return `config` with checkpoints to keep at a quarter and a half of its FLOPs, and with as
    many log records as the board asks for. Raises `ConfigError` if it has too few steps for them.
    """
    from smallbench.leaderboard.log_check import MIN_POINTS
    from smallbench.planning.planner import UnplannedError

    try:
        steps = num_steps(config, data)
    except UnplannedError as error:  # of a plug-in; what is not known beforehand is not kept
        print(f"no checkpoints along the way are kept: {error}", file=sys.stderr)
        return config
    if few := too_few(steps):
        raise ConfigError(f"the budget is about {steps:,} step{'s' * (steps != 1)}; {few}")
    train = config.train
    if not train.milestones:
        train = replace(train, milestones=(steps // 4, steps // 2))
    if steps // train.log_every_steps <= MIN_POINTS:
        every = steps // (MIN_POINTS + 1)
        print(f"a record every {every} steps: an entry's log has at least {MIN_POINTS}")
        train = replace(train, log_every_steps=every)
    return replace(config, train=train)


def too_few(steps: int) -> str:
    """Return why the board would reject a run of so many steps; empty if it would not."""
    from smallbench.leaderboard.log_check import MIN_POINTS

    if steps > MIN_POINTS:
        return ""
    return (
        f"an entry's log has at least {MIN_POINTS} records, so expected more than {MIN_POINTS} "
        "steps: raise --flops, or lower --train.global_batch_size"
    )


def num_steps(config: PretrainConfig, data: Path) -> int:
    """Return about how many steps the budget is."""
    if config.train.max_flops is None:
        return config.train.max_steps
    return fitted_and_steps(config, data)[1]


def train(config: PretrainConfig, *, data: Path, out: Path, stop: Stop) -> None:
    """Pretrain and export; finished parts are skipped."""
    from smallbench.export.huggingface import export
    from smallbench.pretraining.pretrain import pretrain
    from smallbench.pretraining.run_data import fit_to_data, open_data
    from smallbench.pretraining.run_record import open_run_record

    run_dir, exported = out / "run", out / "export"
    marker = exported / "smallbench.json"
    if marker.is_file():  # also refuses another configuration, corpus or plug-in
        corpus = open_data(data)
        fitted = fit_to_data(config, corpus)
        record = open_run_record(run_dir, fitted, corpus.rows, data, has_checkpoints=True)
        if read_json(marker).get("run_id") == record["run_id"]:
            announce(f"1/4 pretrain, 2/4 export: {exported} is complete")
            return
    announce(f"1/4 pretrain: {config.recipe}, {_budget_text(config)}")
    pretrain(config, data=data, run_dir=run_dir, shows_plan=True, stop=stop)
    announce("2/4 export: a directory that from_pretrained loads")
    difference = export(run_dir, exported).difference
    print(f"{exported}: outputs differ from the run's by at most {difference:.1e}")


def _budget_text(config: PretrainConfig) -> str:
    flops = config.train.max_flops if config.train.max_steps else None
    return "random weights, no step" if flops is None else f"{flops:.3g} training FLOPs"


def fine_tune(
    options: Options, config: PretrainConfig, tasks: Sequence[TaskData], track: Track, stop: Stop
) -> None:
    """Make the runs of the track's protocol that are not stored."""
    from smallbench.glue.grid import measure
    from smallbench.glue.pretrained import PretrainedEncoder
    from smallbench.glue.protocols import results_table, summarize

    announce(f"3/4 glue: {', '.join(data.task.title for data in tasks)} by {track.protocol}")
    exported, out = options.out / "export", options.out / "glue"
    encoder = PretrainedEncoder(
        # The code in the export is that of the user's own recipe.
        str(exported), random_init=options.random_weights, trust_remote_code=True
    )  # fmt: skip
    require_runs_of(encoder, out)
    runs = measure(
        encoder,
        tasks,
        FinetuneConfig(device=config.train.device, precision=config.train.precision),
        protocol=track.protocol,
        out=out,
        stop=stop,
    )
    print(results_table(summarize(runs, track.protocol)))


def require_runs_of(encoder: PretrainedEncoder, glue: Path) -> None:
    """Raise `ConfigError` if `glue` has a run of other weights."""
    from smallbench.glue.results import RESULT_FILE, read_run

    for path in glue.glob(f"runs/*/*/{RESULT_FILE}"):
        found = read_run(path.parent).settings
        if encoder.sha256 and found.model_sha256 != encoder.sha256:
            raise ConfigError(
                f"{glue} has runs of {found.model}, whose weights are not those of {encoder.name}; "
                f"delete {glue} and run the same command"
            )


def write_entry(options: Options, config: PretrainConfig) -> Path:
    """Write the entry again, dated by the run's own record: equal runs and flags give equal bytes.

    What a killed command left of it is deleted first.
    """
    from smallbench.leaderboard.assemble import write_new_entry, write_random_entry

    announce("4/4 entry")
    run_dir, glue = options.out / "run", options.out / "glue"
    attempts = read_record(run_dir / RECORD_NAME)["attempts"]
    began = datetime.fromtimestamp(attempts[-1]["started_unix_seconds"], UTC)
    author = author_of(options, began.date().isoformat())
    folder = options.out / "entry" / slug(options, config)
    if folder.exists():
        print(f"{folder} exists; it is replaced by what its runs and the flags say")
        shutil.rmtree(folder)
    write = write_random_entry if options.random_weights else write_new_entry
    write(folder, run_dir=run_dir, glue=glue, author=author)
    return folder


def ending(options: Options, config: PretrainConfig, folder: Path, track: Track) -> str:
    """Return the assumed claims, and the next commands."""
    from smallbench.glue.protocols import protocol_named

    protocol, milestones = protocol_named(track.protocol), config.train.milestones
    last = read_json(options.out / "export" / "smallbench.json")["step"]
    return from_template(
        "smallbench.jobs",
        "enter.txt",
        options=options,
        folder=folder,
        command=command,
        protocol=protocol,
        run_dir=options.out / "run",
        way=options.out / "way",
        steps=(*milestones, last) if milestones else (),
        rate=protocol.learning_rates[len(protocol.learning_rates) // 2],
    ).rstrip()


def plan(options: Options, config: PretrainConfig) -> str:
    """The budget, as far as it is known without training."""
    track = TRACKS[options.track]
    check_request(options, config, track)
    lines = [f"track {track.name}: {track.rule}; protocol {track.protocol}"]
    if options.random_weights:
        return f"{lines[0]}\nno pretraining: random weights of the recipe's shape"
    try:
        number = num_steps(config, Path(options.data))
        steps = "; ".join(
            filter(None, (f"about {number:,} step{'s' * (number != 1)}", too_few(number)))
        )
    except SmallbenchError as error:
        steps = f"steps not estimated ({error})"
    except OSError:
        steps = f"steps not estimated, since {options.data} is not a prepared corpus yet"
    return "\n".join([*lines, f"pretraining: {_budget_text(config)}, {steps}"])


JOB = Job(
    "enter", Options, run, words=("track", "recipe"), config=config, plan=plan,
    shortcuts={"seed": "train.seed", "flops": "train.max_flops"},
)  # fmt: skip

if __name__ == "__main__":
    start(JOB)
