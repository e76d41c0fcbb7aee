"""Weights & Biases as a view of a run's records.

One thread talks to it, so a slow or absent server can neither delay a step nor end a run. Each
record becomes one row with `step`, `tokens` and `hours`; W&B's own step is never set, because W&B
drops rows behind its last step.

No row is logged twice or lost. An online attempt asks the server for the last row of each kind of
record, and logs the later records of `metrics.jsonl`. An offline attempt logs all records again: a
row's number is its record's, so `wandb sync` skips rows that the server has.
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
from typing import Any

from smallbench.errors import ExitCode, UnavailableError
from smallbench.files import read_json
from smallbench.stop import NEVER, Stop
from smallbench.tracking.base import MetricsRecord
from smallbench.tracking.config import TrackerConfig
from smallbench.tracking.jsonl import read_metrics

INIT_SECONDS = 20.0
"""Timeout of the server at the start; after it the attempt is offline."""

FINISH_SECONDS = 20.0
"""Timeout of the last uploads; what is left stays in the directory for `wandb sync`."""

EXIT_SECONDS = 1.0
"""Kept of the grace period for the exit itself."""

AXES = ("step", "tokens", "hours")
"""In every row, so that each metric can be shown against each of them."""

RESTARTED = {ExitCode.INTERRUPTED, ExitCode.SIGTERM, ExitCode.SIGINT}
"""Exit codes after which a scheduler starts the run again."""


def row_of(record: MetricsRecord) -> dict[str, Any]:
    """Return a record as W&B shows it: the fields under the event's name, and the axes."""
    event = record["event"]
    return {
        **{f"{event}/{key}": value for key, value in record.items() if key != "event"},
        "step": record["step"],
        "tokens": record["tokens"],
        "hours": record["train_seconds"] / 3600,
    }


def open_views(config: TrackerConfig, **arguments: Any) -> list[WandbRun]:
    """Return the trackers of `config`, none or one; the arguments are `WandbRun`'s."""
    return [] if config.tracker == "none" else [WandbRun(config, **arguments)]


def views_of_run(config: TrackerConfig, run_dir: Path, *, stop: Stop = NEVER) -> list[WandbRun]:
    """Return `open_views` for the pretraining run in `run_dir`, under the run's own id.

    The present records of `metrics.jsonl` are logged first.
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
    """Return the library, without its error reports, for which the exit would wait."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def require_library(config: TrackerConfig) -> None:
    """Raise `ModuleNotFoundError` before any work if the tracker's package is missing."""
    if config.tracker != "none":
        import_wandb()


def entity_of_key() -> str:
    """Return WANDB_ENTITY, or the key's entity; raise `UnavailableError` if there is no key."""
    wandb = import_wandb()
    if not has_key():
        raise UnavailableError("no W&B key is set")
    return os.environ.get("WANDB_ENTITY") or str(
        wandb.Api(timeout=int(INIT_SECONDS)).default_entity
    )


class WandbRun:
    """A context in which W&B shows a run; raises `ModuleNotFoundError` if wandb is missing."""

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
        records: Sequence[MetricsRecord] = (),
        at_end: Callable[[], Mapping[str, Any]] = dict,
        stop: Stop = NEVER,
    ) -> None:
        """`at_end` returns the summary; `stop` limits how long the end may take."""
        self._wandb = import_wandb()
        self._arguments: dict[str, Any] = {
            "project": config.wandb_project,
            "id": run_id,
            "name": name,
            "group": group,
            "job_type": job_type,
            "dir": str(folder),
            "config": dict(settings),
            "allow_val_change": True,  # resumable keys may change with an attempt
        }
        self._at_end, self._stop = at_end, stop
        self._records = records
        self._newest: dict[str, int] = {}
        """Last step of each event that W&B had before this attempt."""
        self._is_offline = self._is_given_up = False
        self._stop_pressed = threading.Event()
        self._work: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
        self._exit_code = 0
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)

    def __enter__(self) -> WandbRun:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self._exit_code = int(getattr(error, "exit_code", ExitCode.CRASH))
        self._work.put(None)
        left = self._stop.seconds_left() - EXIT_SECONDS
        self._thread.join(timeout=max(min(INIT_SECONDS + 2 * FINISH_SECONDS + 5, left), 0))
        if self._thread.is_alive():
            self._is_given_up = True
            _say("W&B took too long to finish; the next attempt or wandb sync sends the rest")
            # Else its own hook would wait again at the interpreter's exit.
            teardown = threading.Thread(target=self._wandb.teardown, daemon=True)
            teardown.start()
            teardown.join(timeout=EXIT_SECONDS / 2)

    def log(self, record: MetricsRecord) -> None:
        """Show a record, unless an earlier attempt has."""
        self._work.put(lambda run: self._log(run, record))

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
        """Show an artifact whose files stay below the `url` of a storage."""
        base = url if "://" in url else f"file://{url}"
        names = list(files)

        def work(run: Any) -> None:
            artifact = self._wandb.Artifact(name, type=kind, metadata=dict(metadata))
            for path in names:
                artifact.add_reference(f"{base}/{path}", name=path, checksum=False)
            run.log_artifact(artifact, aliases=list(aliases))

        self._work.put(work)

    def asked_to_stop(self) -> bool:
        """Return whether the Stop button of the run's page was pressed."""
        return self._stop_pressed.is_set()

    def _serve(self) -> None:
        try:
            run = self._init()
            for record in self._records:
                self._log(run, record)
            self._replace_older(run)
            while (work := self._work.get()) is not None:
                work(run)
            self._finish(run)
        except Exception as problem:  # no failure of it may end a training
            if not self._is_given_up:
                _say(f"W&B has failed and shows no more of this run: {_sentence(problem)}")
        finally:
            if not self._is_given_up:  # otherwise done by __exit__
                self._wandb.teardown(self._exit_code)

    def _init(self) -> Any:
        """Return an online run if there is a key and the server answers, else an offline one."""
        wandb = self._wandb
        settings = wandb.Settings(
            silent=True,
            console="off",  # capturing the output would cost the thread that prints
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,  # 0, the default, never ends
            finish_timeout_raises=True,
            # By default it sends SIGINT, which may be the second. A lambda: settings are copied.
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
        except Exception as problem:  # of any class
            if self._is_given_up:
                raise
            _say(f"W&B at {chosen.base_url} cannot be used, going offline: {_sentence(problem)}")
            wandb.teardown()  # its service still has a run of this id, and starts no second one
        self._is_offline = True
        # Not resumed: `sync` would append all rows to those on the server.
        return _with_axes(wandb.init(**self._arguments, mode="offline", settings=settings))

    def _log(self, run: Any, record: MetricsRecord) -> None:
        if record["step"] > self._newest.get(record["event"], -1):
            run.log(row_of(record))

    def _replace_older(self, run: Any) -> None:
        """Delete the offline directories of earlier attempts, whose records this one repeats.

        Sent later, one of them would reset the run's summary.
        """
        own = Path(run.dir).parent
        for older in own.parent.glob("offline-run-*"):
            if older != own and re.fullmatch(rf"offline-run-\d+_\d+-{run.id}(-\d+)?", older.name):
                shutil.rmtree(older)

    def _finish(self, run: Any) -> None:
        run.summary.update(dict(self._at_end()))
        if self._exit_code in RESTARTED:
            run.mark_preempting()  # else the page says "failed" while another machine continues
        command = f"wandb sync {shlex.quote(str(Path(run.dir).parent))}"
        try:
            run.finish(exit_code=self._exit_code)
        except TimeoutError:
            _say(f"W&B did not take everything in {FINISH_SECONDS:.0f} s; to send it: {command}")
            return
        if self._is_offline:
            _say(f"W&B was offline; to send this run: {command}")


def has_key(settings: Any = None) -> bool:
    """Return whether variables or files hold a key; no server is asked."""
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
    # The default axis of a page; the others can be chosen there.
    for event in ("train", "eval"):
        run.define_metric(f"{event}/*", step_metric="step")
    return run


def _sentence(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
