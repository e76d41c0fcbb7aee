"""The leaderboard: entries made, checked, compared, ranked and shown.

Without an action, the table: the paper's rows beside --results, or every board of the entries in
--submissions. Each action has a page of its own. An entry never holds a score: scores are computed
from its predictions and the labels of --glue.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from smallbench.config import Location, command, option
from smallbench.errors import ConfigError, DataError, UsageError
from smallbench.jobs.base import Job, actions, author_of, require_accepted, start
from smallbench.leaderboard.text import show
from smallbench.storage import open_storage
from smallbench.storage.config import StorageConfig

if TYPE_CHECKING:
    from smallbench.leaderboard.gold import Gold

MAX_PORT = 2**16 - 1
LABELS = "gold labels: folder in the official TSV layout, or hub"
CACHE = "folder for cached results of entries"


@dataclass(frozen=True, kw_only=True)
class TableOptions(StorageConfig):
    """Flags of `smallbench leaderboard`."""

    results: tuple[Location, ...] = option(
        (),
        help="folders with stored runs: each the --out of a glue or finetune job",
        metavar="DIR|URL[,…]",
    )
    submissions: Path | None = option(None, help="folder of entries")
    glue: Location | None = option(
        None, help="gold labels for --submissions: folder in the official TSV layout, or hub"
    )
    out: Location | None = option(None, help="Markdown file or URL that also gets the table")
    cache: Path | None = option(None, help=CACHE)

    def __post_init__(self) -> None:
        if self.results and self.submissions is not None:
            raise UsageError("--results and --submissions contradict each other; give one of them")


def table(options: TableOptions) -> None:
    """Print the paper's rows beside --results, or every board of the entries in --submissions."""
    from smallbench.glue.results import read_runs
    from smallbench.glue.results_storage import results_folder
    from smallbench.leaderboard.board import render_board
    from smallbench.leaderboard.evaluation import evaluate_all
    from smallbench.leaderboard.markdown_table import leaderboard_rows, render_markdown

    if options.submissions is not None:
        gold = labels_of(options.glue)
        text = render_board(evaluate_all(options.submissions, gold, cache=options.cache))
    else:
        runs = []
        for url in options.results:
            with results_folder(url, options) as folder:
                runs += read_runs(folder)
        text = render_markdown(leaderboard_rows(runs))
    if options.out is not None:
        place, _, name = str(options.out).rpartition("/")
        open_storage(place or ".", options).put(name, text.encode())
    sys.stdout.write(text)


def require_entries(*folders: Path) -> None:
    """Raise `DataError` for a folder that does not exist."""
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a directory; expected the folder of an entry")


def labels_of(glue: str | None) -> Gold:
    """The dev labels of `--glue`; none without it."""
    from smallbench.leaderboard.gold import NO_GOLD, read_gold

    return NO_GOLD if glue is None else read_gold(glue)


@dataclass(frozen=True, kw_only=True)
class NewOptions:
    """Flags of `smallbench leaderboard new`."""

    run: Path = option(help="--run_dir of the pretraining")
    glue: Path = option(help="--out of 'smallbench glue'")
    out: Path = option(help="folder to write: submissions/SLUG")
    authors: tuple[str, ...] = option(help="authors of the entry", metavar="NAME[,NAME…]")
    license: str = option(help="licence of the entry and its weights, such as Apache-2.0")
    contains_glue: bool = option(
        help="whether text of GLUE's dev or test sets is in the training data"
    )
    name: str | None = option(
        None, help="name of the entry; none: the recipe's, and the seed if it is not 1"
    )
    contact: str | None = option(None, help="how to reach the authors, public")
    notes: tuple[str, ...] = option((), help="remark for readers")
    code: str | None = option(None, help="https link to the code")
    paper: str | None = option(None, help="https link to the paper")
    wandb: str | None = option(None, help="https link to the run in W&B")
    huggingface: str | None = option(None, help="https link to the weights on the hub")
    huggingface_revision: str | None = option(
        None, help="commit of these weights on the hub, 40 hexadecimal digits"
    )
    image_digest: str | None = option(None, help="digest of the container image, sha256:…")
    usd_per_hour: float | None = option(None, help="price of an hour of the machine in US dollars")
    gco2_per_kwh: float | None = option(None, help="grams of CO₂ for a kWh of its electricity")


def new(options: NewOptions) -> None:
    """Write a complete entry from a pretraining run and a GLUE run.

    Nothing is typed by hand that the runs know.
    """
    from smallbench.leaderboard.assemble import write_new_entry
    from smallbench.leaderboard.folder import is_allowed

    slug = options.out.resolve().name
    if not is_allowed("slug", slug):
        raise ConfigError(
            f"--out={options.out}: invalid slug {slug!r}; expected lower-case letters, digits and "
            "inner hyphens, at most 64"
        )
    author = author_of(options, date.today().isoformat())
    entry = write_new_entry(options.out, run_dir=options.run, glue=options.glue, author=author)
    print(
        f"{entry.name} is in {options.out}. Next:\n"
        f"  {command('leaderboard', 'validate', options.out, glue='GLUE_DIR')}"
    )


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """Flags of `smallbench leaderboard validate`."""

    entry: Path = option(help="folder of the entry")
    glue: Location | None = option(None, help=LABELS)
    cache: Path | None = option(None, help=CACHE)
    json: bool = option(False, help="print the report as JSON")


def validate(options: ValidateOptions) -> None:
    """Run every check on an entry's folder, as data and never as code.

    Ends with exit code 65 if the entry is rejected.
    """
    require_entries(options.entry)
    gold = labels_of(options.glue)
    require_accepted(options.entry, gold, cache=options.cache, as_json=options.json)


@dataclass(frozen=True, kw_only=True)
class ChangeOptions:
    """Flags of `smallbench leaderboard change`."""

    repository: Path = option(help="git repository whose HEAD merges a pull request")
    glue: Location | None = option(None, help=LABELS)
    keeper: bool = option(False, help="a keeper of the board has confirmed the request")
    cache: Path | None = option(None, help=CACHE)


def change(options: ChangeOptions) -> None:
    """Judge a pull request: it adds one entry's own files and nothing else.

    The entry is then validated. Ends with exit code 65 if the request is refused.
    """
    from smallbench.leaderboard.change import ROOT, read_request

    request = read_request(options.repository, keeper=options.keeper)
    for problem in request.problems:
        print(f"REJECTED  change: {problem}")
    if request.problems:
        raise DataError(f"the pull request has {len(request.problems)} problems; see above")
    if request.entry is None:
        print("no entry is added or changed")
    else:
        folder = options.repository / ROOT / request.entry
        validate(ValidateOptions(entry=folder, glue=options.glue, cache=options.cache))


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Flags of `smallbench leaderboard compare`."""

    entry: Path = option(help="folder of the first entry, A")
    other: Path = option(help="folder of the second entry, B")
    glue: Location = option(help=LABELS)
    cache: Path | None = option(None, help=CACHE)


def compare(options: CompareOptions) -> None:
    """Print for each task which of two entries leads, with the range of the difference."""
    from smallbench.leaderboard.board import render_comparison
    from smallbench.leaderboard.evaluation import evaluate_each

    folders = [options.entry, options.other]
    require_entries(*folders)
    pair = evaluate_each(folders, labels_of(options.glue), cache=options.cache)
    for evaluation in pair:
        if not evaluation.views:
            raise DataError(
                f"{evaluation.folder} has no scores to compare; "
                f"'{command('leaderboard', 'validate', evaluation.folder)}' says why"
            )
    print(render_comparison(*pair))


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Flags of `smallbench leaderboard reproduce`."""

    entry: Path = option(help="folder of the entry")
    glue: Location = option(help=LABELS)
    data: Location | None = option(
        None, help="corpus of the pretraining; none: the one that the entry names"
    )
    then_data: Location | None = option(None, help="corpus of the second phase, if the run had one")
    out: Path | None = option(None, help="folder of the repetition; none: reproduced/SLUG")
    run_plugins: bool = option(
        False, help="execute the code that the entry has in plugins/, which you have read"
    )
    print_commands: bool = option(False, help="print the commands and end")
    cache: Path | None = option(None, help=CACHE)


def reproduce(options: ReproduceOptions) -> None:
    """Run an entry's own commands again, for hours on a GPU, and compare the results.

    The same command continues an interrupted repetition.

    If they agree, a keeper of the board writes the printed line to verified.json. Ends with exit
    code 65 if they do not.
    """
    from smallbench.leaderboard.reproduce import Repetition

    require_entries(options.entry)
    repetition = Repetition(options.entry, options.out, data=options.data,
                            then_data=options.then_data, glue=options.glue)  # fmt: skip
    if options.print_commands:
        print(repetition.script)
        return
    comparison, holds = repetition.run(
        labels_of(options.glue), cache=options.cache, run_plugins=options.run_plugins
    )
    print(comparison)
    if not holds:
        raise DataError(f"{options.entry} was not reproduced within the tolerances")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Flags of `smallbench leaderboard build`."""

    submissions: Path = option(Path("submissions"), help="folder of entries")
    glue: Location | None = option(None, help=LABELS)
    out: Path = option(Path("site"), help="folder of the site")
    site_url: str | None = option(
        None, help="URL of the hosted site, for an Atom feed and canonical links"
    )
    cache: Path | None = option(None, help=CACHE)


def build(options: BuildOptions) -> None:
    """Build the website of all entries: a folder for any static host."""
    from smallbench.leaderboard.evaluation import evaluate_all
    from smallbench.leaderboard.site.build import build_site

    gold, out = labels_of(options.glue), options.out
    entries = evaluate_all(options.submissions, gold, cache=options.cache)
    entries = build_site(entries, out, site_url=options.site_url, is_sample=gold.is_sample,
                         cache=options.cache)  # fmt: skip
    for evaluation in entries:
        for finding in evaluation.findings:
            if finding.verdict == "rejected":
                name = show(evaluation.folder.name)
                print(f"left out {name}: {finding.check}: {finding.reason}", file=sys.stderr)
    shown = sum(not evaluation.rejected for evaluation in entries)
    print(f"{shown} entries, {len(entries) - shown} rejected: {out / 'index.html'}", flush=True)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(BuildOptions):
    """Flags of `smallbench leaderboard serve`."""

    port: int = option(8000, help="port of 127.0.0.1; 0 takes a free one")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise UsageError(f"Invalid --port={self.port}: expected 0 to {MAX_PORT}")


def serve(options: ServeOptions) -> None:
    """Build the website and show it on this machine."""
    from smallbench.leaderboard.site.serve import server, url_of

    build(options)
    with server(options.out, port=options.port) as found:
        print(f"{url_of(found)} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            found.serve_forever()


ACTIONS = actions(
    "leaderboard",
    ("table", TableOptions, table),
    ("new", NewOptions, new),
    ("validate", ValidateOptions, validate, "entry"),
    ("change", ChangeOptions, change, "repository"),
    ("compare", CompareOptions, compare, "entry other"),
    ("reproduce", ReproduceOptions, reproduce, "entry"),
    ("build", BuildOptions, build),
    ("serve", ServeOptions, serve),
)
JOB = Job("leaderboard", TableOptions, table, actions=ACTIONS)

if __name__ == "__main__":
    start(JOB)
