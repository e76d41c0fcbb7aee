"""Weights & Biases as a view of a run's records.

All talking to it happens in one thread, so that a slow or absent server can neither hold up a step
nor end a run. Each record becomes one row, `train/loss` and so on, with `step`, `tokens` and
`hours` beside it; W&B's own step is never set, because it drops what is logged behind it.

What has been logged is known from the other side. A run that continues online asks the server how
far each kind of record came, and logs what is missing of `metrics.jsonl` and nothing twice: the
steps that a killed attempt had logged and that are repeated give the same numbers. An offline
attempt cannot ask, so it begins with all records: a row's number is its record's, and when it is
sent, rows that are there already are not taken twice.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from smallbench.errors import ExitCode, UnavailableError
from smallbench.files import read_json
from smallbench.stop import NEVER, Stop
from smallbench.tracking.base import Record
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.jsonl import read_metrics

INIT_SECONDS = 20.0
"""How long a server may take to answer at the start; then the attempt goes offline."""

FINISH_SECONDS = 20.0
"""How long W&B may go on uploading at the end; what is left is in the directory for `sync`."""

EXIT_SECONDS = 1.0
"""Kept of a grace for the way out."""

AXES = ("step", "tokens", "hours")
"""In every row, so that each metric can be shown against each of them."""

RESTARTED = {ExitCode.INTERRUPTED, ExitCode.SIGTERM, ExitCode.SIGINT}
"""Ends after which a scheduler starts the run again."""


def row_of(record: Record) -> dict[str, Any]:
    """Return a record as W&B shows it: everything under the event's name, and the axes."""
    event = record["event"]
    return {
        **{f"{event}/{key}": value for key, value in record.items() if key != "event"},
        "step": record["step"],
        "tokens": record["tokens"],
        "hours": record["train_seconds"] / 3600,
    }


def open_views(config: TrackerConfig, **arguments: Any) -> list[WandbRun]:
    """Return the trackers that `config` asks for, none or one; the arguments are `WandbRun`'s."""
    return [] if config.tracker == "none" else [WandbRun(config, **arguments)]


def views_of_run(
    config: TrackerConfig,
    run_dir: Path,
    *,
    stop: Stop = NEVER,
) -> list[WandbRun]:
    """`open_views` for the pretraining run in `run_dir`.

    Its id is the run's, so that it continues wherever `run.json` is. Records that are in
    `metrics.jsonl` now are logged first.
    """
    record = read_json(run_dir / "run.json")
    attempt = record["attempts"][-1]

    def summary() -> Mapping[str, Any]:
        totals = read_json(run_dir / "run.json").get("summary", {})
        return {f"run/{key}": value for key, value in totals.items()} | {
            "run/attempts": attempt["number"]
        }

    return open_views(
        config,
        run_id=record["run_id"],
        name=run_dir.resolve().name,
        group=record["config"]["recipe"],
        job_type="pretrain",
        folder=run_dir,
        settings={
            **record["config"],
            **{key: record[key] for key in ("config_digest", "corpus", "data")},
            **{key: attempt[key] for key in ("git_commit", "device", "precision")},
        },
        records=read_metrics(run_dir / "metrics.jsonl"),
        at_end=summary,
        stop=stop,
    )


def import_wandb() -> Any:
    """Return the library, quiet about itself."""
    # Its reports to its makers are sent when the interpreter exits, which would wait for them.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def entity_of_key() -> str:
    """WANDB_ENTITY, or the one that the key belongs to; raises if no key is found."""
    wandb = import_wandb()
    if not has_key():
        raise UnavailableError("W&B knows no key here")
    return os.environ.get("WANDB_ENTITY") or str(
        wandb.Api(timeout=int(INIT_SECONDS)).default_entity
    )


class WandbRun:
    """A run in W&B while its context lasts; raises `ModuleNotFoundError` if that is missing."""

    def __init__(
        self,
        config: TrackerConfig,
        *,
        run_id: str,
        name: str,
        group: str,
        job_type: str,
        folder: Path,
        settings: Mapping[str, Any],
        records: Sequence[Record] = (),
        at_end: Callable[[], Mapping[str, Any]] = dict,
        stop: Stop = NEVER,
    ) -> None:
        """`at_end` gives values for the summary; `stop` says how long the end may take."""
        self._wandb = import_wandb()
        self._arguments: dict[str, Any] = {
            "project": config.wandb_project,
            "id": run_id,
            "name": name,
            "group": group,
            "job_type": job_type,
            "dir": str(folder),
            "config": dict(settings),
            "allow_val_change": True,  # what is looked at and kept may change with an attempt
        }
        self._at_end, self._stop = at_end, stop
        self._records = records
        self._newest: dict[str, int] = {}
        """The step of each event's last row that W&B had before this attempt."""
        self._is_offline = self._is_given_up = False
        self._stop_pressed = threading.Event()
        self._work: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
        self._exit_code = 0
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)

    def __enter__(self) -> WandbRun:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish, in bounded time."""
        if error is not None:
            self._exit_code = int(getattr(error, "exit_code", ExitCode.CRASH))
        self._work.put(None)
        left = self._stop.seconds_left() - EXIT_SECONDS
        self._thread.join(timeout=max(min(INIT_SECONDS + 2 * FINISH_SECONDS + 5, left), 0))
        if self._thread.is_alive():
            self._is_given_up = True
            _say("W&B took too long to finish; the next attempt, or wandb sync, brings the rest")
            # Its own hook would wait again when the interpreter exits; this takes that hook away.
            teardown = threading.Thread(target=self._wandb.teardown, daemon=True)
            teardown.start()
            teardown.join(timeout=EXIT_SECONDS / 2)

    # What a run asks for

    def log(self, record: Record) -> None:
        """Show a record, unless an earlier attempt has."""
        self._work.put(lambda run: self._log(run, record))

    def close(self) -> None:
        """As a tracker; leaving the context finishes the run."""

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table."""
        data = [list(row) for row in rows]
        self._work.put(
            lambda run: run.log({name: self._wandb.Table(columns=list(columns), data=data)})
        )

    def refer(
        self,
        name: str,
        *,
        kind: str,
        url: str,
        files: Iterable[str],
        metadata: Mapping[str, Any],
        aliases: Sequence[str] = (),
    ) -> None:
        """An artifact whose files stay where they are, below the `url` of a storage."""
        place = url if "://" in url else f"file://{url}"
        names = list(files)

        def work(run: Any) -> None:
            artifact = self._wandb.Artifact(name, type=kind, metadata=dict(metadata))
            for path in names:
                artifact.add_reference(f"{place}/{path}", name=path, checksum=False)
            run.log_artifact(artifact, aliases=list(aliases))

        self._work.put(work)

    def asked_to_stop(self) -> bool:
        """Return whether somebody pressed the Stop button of the run's page."""
        return self._stop_pressed.is_set()

    # In the thread

    def _serve(self) -> None:
        try:
            run = self._init()
            for record in self._records:
                self._log(run, record)
            self._replace_older(run)
            while (work := self._work.get()) is not None:
                work(run)
            self._finish(run)
        except Exception as problem:  # whatever it is, it must not end a training
            if self._is_given_up:
                return
            _say(f"W&B has failed and shows no more of this run: {_sentence(problem)}")
        finally:
            if not self._is_given_up:  # else that has been done
                self._wandb.teardown(self._exit_code)

    def _init(self) -> Any:
        """Return the run: online where there is a key and the server answers, else offline."""
        wandb = self._wandb
        settings = wandb.Settings(
            silent=True,
            console="off",  # its copy of what we print would be made by whoever prints
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,  # 0, the default, waits for ever
            finish_timeout_raises=True,
            # Else it sends SIGINT, which may be the second. (A lambda, since settings are copied.)
            stop_fn=lambda: self._stop_pressed.set(),
        )
        chosen = wandb.setup().settings
        if chosen.mode == "disabled":
            return wandb.init(**self._arguments, mode="disabled", settings=settings)
        try:
            if chosen.mode not in {"offline", "dryrun"} and has_key(chosen):
                run = wandb.init(
                    **self._arguments, mode="online", resume="allow", settings=settings
                )
                _say(f"W&B: {run.url}")
                self._newest = {
                    key.removesuffix("/step"): run.summary[key]
                    for key in (run.summary.keys() if run.resumed else ())
                    if key.endswith("/step")
                }
                return _with_axes(run)
        except Exception as problem:  # it raises as many kinds as there are ways to fail
            if self._is_given_up:
                raise
            _say(f"W&B at {chosen.base_url} cannot be used, going offline: {_sentence(problem)}")
            wandb.teardown()  # its service still has a run of this id, and writes no other
        self._is_offline = True
        # Not resumed: else `sync` would count on from what is there, and append all of it again.
        return _with_axes(wandb.init(**self._arguments, mode="offline", settings=settings))

    def _log(self, run: Any, record: Record) -> None:
        if record["step"] > self._newest.get(record["event"], -1):
            run.log(row_of(record))

    def _replace_older(self, run: Any) -> None:
        """Delete the offline directories of earlier attempts: this one has their records again.

        One that was sent later would take the run's summary back to where it ended.
        """
        own = Path(run.dir).parent
        for older in own.parent.glob("offline-run-*"):
            if older != own and re.fullmatch(rf"offline-run-\d+_\d+-{run.id}(-\d+)?", older.name):
                shutil.rmtree(older)

    def _finish(self, run: Any) -> None:
        run.summary.update(dict(self._at_end()))
        if self._exit_code in RESTARTED:
            run.mark_preempting()  # else the page calls a run failed that goes on elsewhere
        command = f"wandb sync {shlex.quote(str(Path(run.dir).parent))}"
        try:
            run.finish(exit_code=self._exit_code)
        except TimeoutError:
            _say(f"W&B did not take everything in {FINISH_SECONDS:.0f} s; to send it: {command}")
            return
        if self._is_offline:
            _say(f"W&B was offline; to send this run: {command}")


def has_key(settings: Any = None) -> bool:
    """Whether W&B could log in without asking; looks in variables and files, at no server."""
    from wandb.sdk.lib import wbauth

    settings = settings or import_wandb().setup().settings
    variables = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    return bool(
        any(os.environ.get(name) for name in variables)
        or settings.api_key
        or wbauth.read_netrc_auth(host=settings.base_url)
    )


def _with_axes(run: Any) -> Any:
    for axis in AXES:
        run.define_metric(axis)
    # The axis that a page begins with; the others can be chosen there, for each chart or for all.
    for event in ("train", "eval"):
        run.define_metric(f"{event}/*", step_metric="step")
    return run


def _sentence(problem: Exception) -> str:
    """Return what went wrong, on one line."""
    return " ".join(str(problem).split()) or type(problem).__name__


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
