"""Build the site from evaluated entries in a temporary folder, then rename it.

Equal entries give equal bytes: nothing here reads the clock. All text of submitters passes through
Jinja's escaping or a writer of JSON, CSV or XML; links are https or omitted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache as cached
from functools import partial
from importlib.resources import as_file
from importlib.resources import files as package_files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from smallbench import __version__, files
from smallbench.errors import DataError, UsageError
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import site
from smallbench.leaderboard.board import BOARDS, BoardName
from smallbench.leaderboard.cache import code_sha256, read_json
from smallbench.leaderboard.entry import schema
from smallbench.leaderboard.finding import Finding
from smallbench.leaderboard.guard import Failure, call_each
from smallbench.leaderboard.site import exports
from smallbench.leaderboard.site.pages import board_page, downloads_of, entry_page
from smallbench.leaderboard.site.rows import METRICS, Row, rows, task_leads
from smallbench.leaderboard.text import show
from smallbench.leaderboard.verdict import Evaluation
from smallbench.report.scale import short

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

MANY_ENTRIES = 100
"""Number of entries from which several processes write the pages."""
SITE_CODE = ("leaderboard/site", "leaderboard/site/templates", "report/templates")
MARKER = "leaderboard.json"
"""Its content marks a folder as a site."""
WRITTEN = {*(tab.page for tab in BOARDS.values()), "submit.html", "entries", "static"}
WRITTEN |= {MARKER, "leaderboard.csv", "entry.schema.json", "feed.xml"}
WRITTEN |= {f"{name}.tex" for name in BOARDS}
"""All files of a site. A folder with any other file is not replaced."""


def build_site(
    evaluations: Sequence[Evaluation], out: Path, *, site_url: str | None = None,
    is_sample: bool = False, cache: Path | None = None,
) -> list[Evaluation]:  # fmt: skip
    """Write the site to the folder `out`; an old site stays until the new one is complete.

    Returns the evaluations as shown: an entry that cannot be rendered is rejected and left out.
    `site_url`, the address of the hosted site, adds a feed and canonical links; `is_sample` marks
    the labels as generated samples. With `cache`, a site with equal inputs is left as it is. Raises
    `DataError` if `out` holds anything other than a site.
    """
    if site_url is not None:
        site_url = _checked_url(site_url)
    out = out.resolve()  # the folder itself is renamed, not a link to it
    _check_replaceable(out)
    key = _key_of_site(evaluations, site_url, is_sample)
    place = hashlib.sha256(os.fsencode(out)).hexdigest()
    note = cache and cache / f"site-{place[:16]}.json"
    if note and read_json(note) == [key, _digest_of_files(out)]:
        return list(evaluations)
    write = partial(_write, site_url=site_url, is_sample=is_sample)
    with files.atomic_directory(out, flush=False) as building:
        try:
            write(evaluations, building)
        except Exception:
            evaluations, key = check_pages(evaluations), ""
            shutil.rmtree(building)
            write(evaluations, building)
    if note:
        files.write_text(note, json.dumps([key, _digest_of_files(out)]))
    return list(evaluations)


def check_pages(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Build a site of each entry alone, under limits; reject entries that fail as *page*."""
    accepted = [evaluation for evaluation in evaluations if not evaluation.rejected]
    found = dict(zip(map(id, accepted), call_each(_unshowable, accepted), strict=True))
    result = []
    for evaluation in evaluations:
        reason = found.get(id(evaluation), "")
        if isinstance(reason, Failure):
            reason = reason.reason
        if reason:
            finding = Finding("page", "rejected", f"it cannot be shown: {show(reason)}")
            evaluation = replace(evaluation, findings=(*evaluation.findings, finding), views={})
        result.append(evaluation)
    return result


def _unshowable(evaluation: Evaluation) -> str:
    with TemporaryDirectory() as folder:
        try:
            out = Path(folder) / "site"
            _write([evaluation], out, site_url="https://example.org", is_sample=False)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def _check_replaceable(out: Path) -> None:
    if Path.cwd().is_relative_to(out):  # the root too
        raise UsageError(
            f"--out={out} would replace the current directory; run the command from another one"
        )
    if not out.exists():
        return
    remedy = "choose another --out, or empty it"
    if not out.is_dir():
        raise DataError(f"{out} exists and is not a folder; {remedy}")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - WRITTEN):
        raise DataError(f"{out} has {foreign[0]!r}, which is not part of a site; {remedy}")
    if names and not _is_ours(out / MARKER):
        raise DataError(f"{out} exists, but its {MARKER} is not that of a site; {remedy}")


def _is_ours(marker: Path) -> bool:
    try:
        content = json.loads(marker.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema_version", "views"} <= content.keys()


def _checked_url(site_url: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(site_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"Invalid --site_url={site_url}: expected an address such as https://example.org/board"
        )
    return site_url.rstrip("/")


def _key_of_site(evaluations: Sequence[Evaluation], site_url: str | None, is_sample: bool) -> str:
    """Return a hash of all that a site depends on."""
    code = f"{__version__} {site.REPOSITORY_URL} {code_sha256()} {code_sha256(SITE_CODE)}"
    sha = hashlib.sha256(f"{code} {site_url} {is_sample}".encode())
    for e in evaluations:
        scores = [(name, view.tasks) for name, view in e.views.items()]
        place = f"{e.folder.resolve()} {e.is_verified} {e.tracks} {e.sha256} {e.findings} {scores}"
        sha.update(place.encode(errors="surrogateescape"))
    return sha.hexdigest()


def _digest_of_files(folder: Path) -> str:
    """Return a hash of the status of a site's files, which a change by hand changes."""
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    found = [(str(p), s.st_size, s.st_mtime_ns, s.st_ino) for p in paths for s in (p.lstat(),)]
    return hashlib.sha256(repr(sorted(found)).encode(errors="surrogateescape")).hexdigest()


def _write(
    evaluations: Sequence[Evaluation], folder: Path, *, site_url: str | None, is_sample: bool
) -> None:
    views = {name: rows(evaluations, name) for name in BOARDS}
    rejected = [show(evaluation.folder.name) for evaluation in evaluations if evaluation.rejected]
    dates = [row.entry.date for found in views.values() for row in found]
    shared = {
        "site_url": site_url,
        "repository_url": site.REPOSITORY_URL,
        "is_sample": is_sample,
        "version": __version__,
        "newest": max(dates, default=None),
        "tasks": TASKS,
        "metrics": METRICS,
    }
    environment = _environment()
    environment.globals.update(shared)

    with as_file(package_files(__package__) / "static") as static:
        shutil.copytree(static, folder / "static", copy_function=shutil.copyfile)
    _write_entries(views, folder / "entries", environment.get_template("entry.html"))
    board, submit = map(environment.get_template, ("board.html", "submit.html"))
    texts = {
        "static/site.css": environment.get_template("styles.css").render(),
        "submit.html": submit.render(path="submit.html", root="", body=_markdown(environment)),
        MARKER: exports.json_text(views, rejected),
        "leaderboard.csv": exports.csv_text(views),
        "entry.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    for name, tab in BOARDS.items():
        texts[tab.page] = board.render(path=tab.page, root="", **board_page(views, name))
        texts[f"{name}.tex"] = exports.latex_text(views[name], tab)
    if site_url is not None:
        texts["feed.xml"] = exports.atom_text(views, site_url=site_url)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_entries(views: exports.Views, folder: Path, template: Template) -> None:
    """Write each entry's page and the files beside it; if they are many, in several processes."""
    leads = {name: task_leads(found) for name, found in views.items()}
    places: dict[str, dict[BoardName, Row]] = {}
    for view, of_view in views.items():
        for row in of_view:
            places.setdefault(row.slug, {})[view] = row

    def write(slug: str) -> None:
        found, target = places[slug], folder / slug
        target.mkdir(parents=True)
        evaluation = next(iter(found.values())).evaluation
        downloads = downloads_of(evaluation).items()
        sizes = {name: (target / name).write_bytes(read()) for name, read in downloads}
        content = entry_page(found, views, sizes)
        page = template.render(path=f"entries/{slug}/index.html", root="../../", **content)
        (target / "index.html").write_text(page, encoding="utf-8")
        # A script, because a page of file:// cannot fetch.
        leads_of = {name: leads[name].get(slug) for name in found}
        data = json.dumps({"points": evaluation.curve, "leads": leads_of}, separators=(",", ":"))
        (target / "data.js").write_text(f'smallbench.loaded("{slug}",{data})\n', encoding="utf-8")

    if len(places) < MANY_ENTRIES:
        for slug in places:
            write(slug)
        return
    for result in call_each(write, places):
        if isinstance(result, Failure):
            raise DataError(result.reason)


# ---- templates


def _markdown(environment: Environment) -> Markup:
    """Return `docs/submitting.md` as HTML; it is the project's own text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, "submitting.md")
    html = MarkdownIt("commonmark").enable("table").render(text)
    # Wide parts scroll on their own, also by keyboard.
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    return Markup(html.replace("</table>", "</table></div>"))  # noqa: S704 - no submitter's text


@cached
def _environment() -> Environment:
    """Return the environment; templates of the report's package begin with `report/`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        package = "smallbench.report" if name.startswith("report/") else __package__
        path = package_files(package) / "templates" / name.removeprefix("report/")
        return path.read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    # As `charts.js` writes a count: 7.47B.
    environment.filters["compact"] = lambda value: short(value).replace(" ", "").replace("G", "B")
    environment.filters["count"] = lambda value: None if value is None else f"{value:,}"
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _unbroken(html: Markup) -> Markup:
    """Remove line breaks between tags; a browser would keep each as a node."""
    return type(html)(re.sub(r">\n\s*<", "><", html))
