"""The leaderboard: entries made, checked, compared, ranked and shown.

table prints the paper's rows beside --results, or both views of the entries in --submissions. new
writes a complete entry to --out from a pretraining run and a GLUE run; nothing is typed by hand
that the runs know. validate runs every check on an entry's folder, as data and never as code, and
ends with exit code 65 if it is rejected. change judges a pull request: it adds one entry's own
files and nothing else, and that entry is validated. compare says task by task which of two entries
leads. build writes the website of all entries to --out, a folder for any static host; serve builds
it and shows it on this machine. reproduce runs an entry's own commands again, for hours on a GPU,
and says whether the results agree; a keeper of the board then notes it in verified.json.

Scores are never in an entry: they are computed from its predictions and the labels of --glue.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from smallbench.config import Location, command, option
from smallbench.errors import DataError, UsageError
from smallbench.jobs.base import Job
from smallbench.storage.config import StorageConfig

NEEDED = {
    "table": (),
    "new": ("run", "glue", "out", "authors", "license", "contains_glue"),
    "validate": ("entry",),
    "change": ("entry",),
    "compare": ("entry", "other", "glue"),
    "reproduce": ("entry", "glue"),
    "build": (),
    "serve": (),
}
"""The options without which an action cannot start."""
MAX_PORT = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Options(StorageConfig):
    """Flags of `smallbench leaderboard`."""

    action: Literal[
        "table", "new", "validate", "change", "compare", "reproduce", "build", "serve"
    ] = option("table", help="what to do")
    entry: Path | None = option(
        None,
        help="validate, compare: folder of an entry; change: a git repository whose HEAD merges a "
        "pull request",
    )
    data: Location | None = option(None, help="reproduce: the corpus; none: the entry's name of it")
    print_commands: bool = option(False, help="reproduce: print the commands and end")
    keeper: bool = option(False, help="change: a keeper of the board has confirmed the request")
    other: Path | None = option(None, help="compare: folder of the entry to compare with")
    glue: Location | None = option(
        None,
        help="new: --out of 'smallbench glue'; else GLUE itself, for its labels: a folder in the "
        "official TSV layout, or hub",
    )
    out: Location | None = option(
        None,
        help="new: folder to write, submissions/SLUG; table: also write this Markdown file, or "
        "URL; build, serve: folder of the site; none: site",
    )
    results: tuple[Location, ...] = option(
        (),
        help="table: folders with stored runs: each the --out of a glue or finetune job",
        metavar="DIR|URL[,…]",
    )
    submissions: Path | None = option(
        None, help="table, build, serve: folder of entries; none, of the latter two: submissions"
    )
    site_url: str | None = option(
        None, help="build: where it will be hosted, for an Atom feed and canonical links"
    )
    port: int = option(8000, help="serve: of 127.0.0.1; 0 takes a free one")
    cache: Path | None = option(None, help="keep what was computed of entries in this folder")
    json: bool = option(False, help="validate: print the report as JSON")
    run: Path | None = option(None, help="new: --run_dir of the pretraining")
    name: str | None = option(None, help="new: the entry's name; none: the recipe's")
    authors: tuple[str, ...] = option((), help="new: who made it", metavar="NAME[,NAME…]")
    contact: str | None = option(None, help="new: how to reach them, public")
    license: str | None = option(None, help="new: of the entry and its weights, as in Apache-2.0")
    contains_glue: bool | None = option(
        None, help="new: whether text of GLUE's dev or test sets is in the training data"
    )
    notes: tuple[str, ...] = option((), help="new: what a reader should know")
    code: str | None = option(None, help="new: https link to the code")
    paper: str | None = option(None, help="new: https link to the paper")
    wandb: str | None = option(None, help="new: https link to the run in W&B")
    huggingface: str | None = option(None, help="new: https link to the weights on the hub")
    huggingface_revision: str | None = option(None, help="new: their commit, 40 hexadecimal digits")
    image_digest: str | None = option(None, help="new: of the container image, sha256:…")
    usd_per_hour: float | None = option(None, help="new: what an hour of the machine cost")
    gco2_per_kwh: float | None = option(None, help="new: of the electricity")

    def __post_init__(self) -> None:
        missing = [n for n in NEEDED[self.action] if getattr(self, n) in (None, ())]
        if missing:
            raise UsageError(f"'leaderboard {self.action}' needs --{missing[0]}")
        if self.action != "table" and "://" in (self.out or ""):
            raise UsageError(
                f"'leaderboard {self.action}' writes a folder on this machine, not {self.out}"
            )
        if not 0 <= self.port <= MAX_PORT:
            raise UsageError(f"--port={self.port} is none; choose one of 0 to {MAX_PORT}")


def run(options: Options) -> None:
    """Do it, and print what came of it."""
    if options.action == "new":
        _new(options)
    elif options.action == "validate":
        _validate(options)
    elif options.action == "change":
        _change(options)
    elif options.action == "compare":
        _compare(options)
    elif options.action == "reproduce":
        _reproduce(options)
    elif options.action in ("build", "serve"):
        _build(options)
    else:
        _table(options)


def _table(options: Options) -> None:
    from smallbench.glue.remote import results_folder
    from smallbench.glue.results import read_runs
    from smallbench.leaderboard.board import render_board
    from smallbench.leaderboard.evaluation import evaluate_all
    from smallbench.leaderboard.gold import NO_GOLD, read_gold
    from smallbench.leaderboard.table import leaderboard_rows, render_markdown
    from smallbench.storage import open_storage

    if options.submissions is not None:
        gold = NO_GOLD if options.glue is None else read_gold(options.glue)
        table = render_board(evaluate_all(options.submissions, gold, cache=options.cache))
    else:
        runs = []
        for url in options.results:
            with results_folder(url, options) as folder:
                runs += read_runs(folder)
        table = render_markdown(leaderboard_rows(runs))
    if options.out is not None:
        place, _, name = str(options.out).rpartition("/")
        open_storage(place or ".", options).put(name, table.encode())
    sys.stdout.write(table)


def _new(options: Options) -> None:
    from smallbench.leaderboard.assemble import Author, write_new_entry
    from smallbench.leaderboard.entry import Links

    assert options.run is not None
    assert options.glue is not None
    assert options.out is not None
    assert options.license is not None
    entry = write_new_entry(
        Path(options.out),
        run_dir=options.run,
        glue=Path(options.glue),
        author=Author(
            name=options.name,
            authors=options.authors,
            license=options.license,
            date=date.today().isoformat(),
            contains_glue=bool(options.contains_glue),
            contact=options.contact,
            links=Links(
                options.code,
                options.paper,
                options.wandb,
                options.huggingface,
                options.huggingface_revision,
            ),
            notes=options.notes,
            image_digest=options.image_digest,
            usd_per_hour=options.usd_per_hour,
            gco2_per_kwh=options.gco2_per_kwh,
        ),
    )
    print(
        f"{entry.name} is in {options.out}. Next:\n"
        f"  {command('leaderboard', 'validate', options.out, glue='GLUE_DIR')}"
    )


def _validate(options: Options) -> None:
    from smallbench.leaderboard.evaluation import evaluate_beside, report, report_dict
    from smallbench.leaderboard.gold import NO_GOLD, read_gold
    from smallbench.leaderboard.site.build import check_pages
    from smallbench.leaderboard.text import show

    assert options.entry is not None
    gold = NO_GOLD if options.glue is None else read_gold(options.glue)
    evaluation = evaluate_beside(options.entry, gold, today=date.today(), cache=options.cache)
    (evaluation,) = check_pages([evaluation])
    if options.json:
        print(json.dumps(report_dict(evaluation), indent=2))
    else:
        print(report(evaluation))
    if evaluation.rejected:
        reasons = [f.check for f in evaluation.findings if f.verdict == "rejected"]
        place = show(str(options.entry))
        raise DataError(f"{place} is rejected: {', '.join(dict.fromkeys(reasons))}")


def _change(options: Options) -> None:
    from dataclasses import replace

    from smallbench.leaderboard.change import ROOT, read_request

    assert options.entry is not None
    request = read_request(options.entry, keeper=options.keeper)
    for problem in request.problems:
        print(f"REJECTED  change: {problem}")
    if request.problems:
        raise DataError(f"the pull request has {len(request.problems)} problems; see above")
    if request.entry is None:
        print("no entry is added or changed")
    else:
        _validate(replace(options, action="validate", entry=options.entry / ROOT / request.entry))


def _compare(options: Options) -> None:
    from smallbench.leaderboard.board import render_comparison
    from smallbench.leaderboard.evaluation import evaluate_each
    from smallbench.leaderboard.gold import read_gold

    assert options.entry is not None
    assert options.other is not None
    assert options.glue is not None
    gold = read_gold(options.glue)
    pair = evaluate_each([options.entry, options.other], gold, cache=options.cache)
    for evaluation in pair:
        if not evaluation.views:
            raise DataError(
                f"{evaluation.folder} has no scores to compare; "
                f"'{command('leaderboard', 'validate', evaluation.folder)}' says why"
            )
    print(render_comparison(*pair))


def _reproduce(options: Options) -> None:
    import shlex

    from smallbench.leaderboard import reproduce
    from smallbench.leaderboard.assemble import Author, write_new_entry
    from smallbench.leaderboard.evaluation import evaluate_each
    from smallbench.leaderboard.gold import read_gold
    from smallbench.leaderboard.submission import Rejected, read_submission

    assert options.entry is not None
    assert options.glue is not None
    try:
        claimed = read_submission(options.entry)
    except Rejected as error:
        raise DataError(f"{options.entry} is rejected: {error.reason}") from None
    if claimed.entry.provenance is None:
        raise DataError(f"{options.entry} is reported: it has no configuration to repeat")
    slug = claimed.entry.slug
    place = Path(options.out or f"reproduced/{slug}")
    commands = reproduce.commands_of(
        claimed.entry, run_dir=str(place / "run"), results=str(place / "glue"),
        data=None if options.data is None else str(options.data), glue=options.glue,
    )  # fmt: skip
    if options.print_commands:
        print("\n".join(map(shlex.join, commands)))
        return
    reproduce.run_commands(commands)
    again = place / "entry" / slug
    author = Author(None, ("keepers",), "CC0-1.0", date.today().isoformat(), contains_glue=False)
    write_new_entry(again, run_dir=place / "run", glue=place / "glue", author=author)
    pair = evaluate_each([options.entry, again], read_gold(options.glue), cache=options.cache)
    found = reproduce.agreements((claimed, pair[0]), (read_submission(again), pair[1]))
    print(reproduce.render(found, pair[0].sha256, slug))
    if not all(agreement.holds for agreement in found):
        raise DataError(f"{options.entry} was not reproduced within the tolerances")


def _build(options: Options) -> None:
    from smallbench.leaderboard.evaluation import evaluate_all
    from smallbench.leaderboard.gold import NO_GOLD, read_gold
    from smallbench.leaderboard.site.build import build_site
    from smallbench.leaderboard.site.serve import server, url_of
    from smallbench.leaderboard.text import show

    gold = NO_GOLD if options.glue is None else read_gold(options.glue)
    out = Path(options.out or "site")
    entries = evaluate_all(options.submissions or Path("submissions"), gold, cache=options.cache)
    entries = build_site(entries, out, site_url=options.site_url, is_sample=gold.is_sample)
    for evaluation in entries:
        for finding in evaluation.findings:
            if finding.verdict == "rejected":
                name = show(evaluation.folder.name)
                print(f"left out {name}: {finding.check}: {finding.reason}", file=sys.stderr)
    shown = sum(not evaluation.rejected for evaluation in entries)
    print(f"{shown} entries, {len(entries) - shown} rejected: {out / 'index.html'}", flush=True)
    if options.action == "serve":
        with server(out, port=options.port) as found:
            print(f"{url_of(found)} (Ctrl-C ends it)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                found.serve_forever()


JOB = Job(
    name="leaderboard",
    options=Options,
    run=run,
    words=("action", "entry", "other"),
    examples=(
        "smallbench leaderboard",
        "smallbench leaderboard --results=results/bert-small,results/mine --out=table.md",
        "smallbench leaderboard table --submissions=submissions --glue=hub",
        "smallbench leaderboard new --run=runs/mine --glue=results/mine --out=submissions/mine"
        " --authors=Ada,Alan --license=Apache-2.0 --contains_glue=false",
        "smallbench leaderboard validate submissions/mine --glue=glue_data",
        "smallbench leaderboard change . --glue=hub",
        "smallbench leaderboard compare submissions/mine submissions/other --glue=glue_data",
        "smallbench leaderboard reproduce submissions/mine --glue=hub --data=corpus",
        "smallbench leaderboard build --out=site --glue=hub --site_url=https://example.org/board",
        "smallbench leaderboard serve",
    ),
)


if __name__ == "__main__":
    from smallbench.jobs.cli import entry

    entry([JOB.name, *sys.argv[1:]])
